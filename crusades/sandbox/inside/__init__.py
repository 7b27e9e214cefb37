"""What runs in the sandbox before anything hostile does: standard library alone, no import of ours from outside.

The folder is mounted read-only at /inside/guard. `limits` lowers what the process may use, `probes` runs into the walls,
`hook` guards the imports of a submission.
"""
