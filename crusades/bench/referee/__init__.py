"""The referee: a trusted process with torch, one per slot, without a network (theory: `crusades.bench`).

`process` answers the daemon's orders; `session` drives one contestant; `exam` prepares what the contestant is compared
with; `audit` compares; `memory`, `layout`, `models` and `data` are what they say.
"""
