"""CHEAT: asks for every batch first and trains afterwards.

All the work is done and the final weights are true, but steps could be merged or reordered this way; a request for the next
batch says that the update before it is in the parameters, and here it is not.
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
    batches = [next(data_iterator).to(device) for _ in range(num_steps)]
    for batch in batches:
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(logits.detach(), num_steps * batches[0].numel(), loss.item())
