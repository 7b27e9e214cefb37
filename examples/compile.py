"""Compile the model once, in the warm-up run, and train through the compiled one afterwards.

The warm-up is not scored, so the minutes that compilation takes there are free; it is audited like every other run. On a
CPU compilation takes longer than the tiny profile is worth, so there the loop stays eager.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def loss_and_logits(model, inputs, labels):
    """One function for the compiler, so that it can fuse the loss with the head."""
    logits = model(inputs).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits


compiled = None


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    global compiled
    if compiled is None:
        compiled = torch.compile(loss_and_logits) if device.type == "cuda" else loss_and_logits
    for _ in range(num_steps):
        batch = next(data_iterator).to(device, non_blocking=True)
        loss, logits = compiled(model, batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(logits.detach(), num_steps * batch.numel(), loss.item())
