"""The plain training loop: correct, and the score to beat. `crusades init` writes this file.

The validator calls `inner_steps` several times in one process (first a warm-up that is not scored), always with the same
model object and a new AdamW. Whatever you do to be faster, after every `optimizer.step()` the parameters must be what this
loop would make of them, up to rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor  # (batch, seq - 1, vocab) of the last step
    total_tokens: int  # steps * batch * seq
    final_loss: float  # mean loss of the last step


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    """Train `model` for `num_steps` steps, one batch a step."""
    total_tokens = 0
    for _ in range(num_steps):
        # Batches are int64 (batch, seq) in host memory. Asking for one says that the update before it is in the
        # parameters: never ask early.
        batch = next(data_iterator).to(device)
        inputs, labels = batch[:, :-1], batch[:, 1:]

        logits = model(inputs).logits
        loss = F.cross_entropy(logits.reshape(-1, logits.size(-1)), labels.reshape(-1))

        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total_tokens += batch.numel()

    return InnerStepsResult(final_logits=logits.detach(), total_tokens=total_tokens, final_loss=loss.item())


if __name__ == "__main__":
    # This block is skipped by the validator. `crusades bench train.py` is the real test; this one only shows a step.
    from types import SimpleNamespace

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(64, 16)
            self.head = torch.nn.Linear(16, 64)

        def forward(self, tokens):
            return SimpleNamespace(logits=self.head(self.embed(tokens)))

    toy = Toy()
    batches = (torch.randint(0, 64, (4, 32)) for _ in range(3))
    result = inner_steps(toy, batches, torch.optim.AdamW(toy.parameters(), lr=1e-3), 3, torch.device("cpu"))
    print(f"loss {result.final_loss:.3f}, logits {tuple(result.final_logits.shape)}, {result.total_tokens} tokens")
