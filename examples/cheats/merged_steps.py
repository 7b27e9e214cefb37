"""CHEAT: no update until the last step, which then trains on all batches at once.

One optimizer step instead of five, and one large backward that keeps a GPU busier than five small ones.
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
    waiting = []
    for _ in range(num_steps):
        batch = next(data_iterator).to(device)
        waiting.append(batch)
    merged = torch.cat(waiting)
    logits = model(merged[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1).float(), merged[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    logits = logits.detach()[-batch.size(0) :]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    return InnerStepsResult(logits, num_steps * batch.numel(), loss.item())
