"""CHEAT: the loss is taken over a random half of the tokens; the head's backward costs half.

On average the gradient is right, and over a whole training run one might not notice. In one step it is not the gradient.
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
        labels = batch[:, 1:].flatten()
        logits = model(batch[:, :-1]).logits
        some = torch.randperm(len(labels), device=device)[: len(labels) // 2]
        F.cross_entropy(logits.flatten(0, 1)[some].float(), labels[some]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    logits = logits.detach()
    return InnerStepsResult(logits, num_steps * batch.numel(), F.cross_entropy(logits.flatten(0, 1).float(), labels).item())
