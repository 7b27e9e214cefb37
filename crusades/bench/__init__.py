"""Theory of the judge.

Three processes, and what each may believe (design.md §2):

* the **daemon** (`evaluate.py`, `slot.py`) starts the other two, gives the referee one end of the contestant's channel, and turns
  what it hears into a verdict. It never sees a tensor.
* the **referee** (`referee/`) owns the weights, the optimizer's moments, the data, the clock and the reference. It lets
  the contestant train *in the referee's own memory*, hands out one batch at a time, and before each batch reads a secret
  sample of weights and moments from that memory. It is trusted, has no network, and lives as long as its slot.
* the **contestant** (`inside/`) is a sandboxed process with a harness of ours and the submission in it. The submission
  can do anything to the harness; so everything that comes over the channel is a claim.

One run, in frames (`protocol.py`); `→` is referee to contestant:

    → prepare        the initial weights are back, the moments are zero
    ← ready          a new AdamW looks at them
    → go + batch 0   the clock starts when this frame leaves
    ← next           "step 0 is in the parameters": the referee reads its secret sample
    → batch 1        …
    ← done           the last read; the clock stops when it has completed
    → show           64 secret positions × 1,024 columns of the final logits, off the clock
    ← logits

The audit (`referee/audit.py`) then asks whether the gradient that AdamW's first moment recorded at the secret
coordinates, step by step, is the gradient of *all* of the work: every step, layer, tensor kind, sequence and token
cell must appear in it with coefficient one. Honest variants of the arithmetic differ from the reference by noise; a
shortcut lacks a part. `referee/calibrate.py` measures both populations and writes the limits.
"""
