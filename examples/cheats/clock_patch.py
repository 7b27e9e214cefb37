"""CHEAT: makes the process's clocks run at half speed.

The referee's clock is in another process and would not notice; the rules refuse the file before it is run, because whoever
patches a clock means no good.
"""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

started = time.perf_counter()
true_clock = time.perf_counter
time.perf_counter = lambda: started + (true_clock() - started) / 2


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    for _ in range(num_steps):
        batch = next(data_iterator).to(device)
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(logits.detach(), num_steps * batch.numel(), loss.item())
