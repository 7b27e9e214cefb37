"""Gradient accumulation: two sequences at a time, so that what the backward needs is still in the cache when it runs.

Every sequence is used and every update is made from the mean over the whole batch; only the order of the sums differs from
the plain loop. Worth trying where activations are larger than the cache (CPUs) or the memory (GPUs).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

SEQUENCES = 2


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    for step in range(num_steps):
        batch = next(data_iterator).to(device, non_blocking=True)
        last = step == num_steps - 1
        loss, kept = torch.zeros((), device=device), []
        for rows in batch.split(SEQUENCES):
            logits = model(rows[:, :-1]).logits
            part = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
            part = part / (batch.size(0) * (batch.size(1) - 1))
            part.backward()
            loss += part.detach()
            if last:
                kept.append(logits.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(torch.cat(kept), num_steps * batch.numel(), loss.item())
