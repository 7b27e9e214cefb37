"""CHEAT: trains nothing and returns a result that looks like one.

The right shapes, the right number of tokens, a loss that an untrained model would have. Thousands of times faster than work.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    for _ in range(num_steps):
        batch = next(data_iterator)
    vocabulary = model.get_output_embeddings().weight.size(0)
    logits = torch.randn(batch.size(0), batch.size(1) - 1, vocabulary, device=device)
    return InnerStepsResult(logits, num_steps * batch.numel(), F.cross_entropy(logits[0], batch[0, 1:].to(device)).item())
