"""CHEAT: every second step steps again with the gradients of the step before, and computes none of its own.

The weights move at every step and by the right amount, in last step's direction.
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
    for step in range(num_steps):
        batch = next(data_iterator).to(device)
        if step % 2 == 0:
            optimizer.zero_grad(set_to_none=True)
            logits = model(batch[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    return InnerStepsResult(logits, num_steps * batch.numel(), loss.item())
