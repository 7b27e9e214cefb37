"""What runs in the sandbox beside the submission: stdlib, torch and transformers, nothing of ours from outside.

Everything here shares a process with hostile code once `train.py` is loaded; nothing here is believed.
"""
