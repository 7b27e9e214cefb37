"""CHEAT: trains on the first half of the sequences and reports all of them.

The mean over half a batch looks like the mean over the batch. The last step's logits are true, because they are asked for.
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
        batch = next(data_iterator).to(device)
        half = batch[: batch.size(0) // 2]
        logits = model(half[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), half[:, 1:].flatten())
        rest = batch[batch.size(0) // 2 :]
        with torch.no_grad():
            others = model(rest[:, :-1]).logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    every = torch.cat([logits.detach(), others])
    loss = F.cross_entropy(every.flatten(0, 1).float(), batch[:, 1:].flatten())
    return InnerStepsResult(every, num_steps * batch.numel(), loss.item())
