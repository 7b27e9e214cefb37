"""Head and loss in chunks: the logits of all tokens never exist at once, except for the last step, where they are asked for.

The head's gradient towards the hidden states is computed chunk by chunk while a chunk is still in the cache, and the
backward through the layers starts from the collected gradient. The arithmetic per token is that of the plain loop.
Works with any Hugging Face causal LM whose logits are its head applied to its last hidden state.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

CHUNK = 512  # tokens; small enough that a chunk's logits stay near the cores, large enough for one good matrix product


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def chunked_step(head, hidden, labels, keep):
    """Backward through the head, chunk by chunk. Returns the gradient of `hidden`, the mean loss, and the logits if kept."""
    flat, targets = hidden.detach().flatten(0, 1), labels.flatten()
    gradient, loss, kept = torch.empty_like(flat), torch.zeros((), device=flat.device), []
    for start in range(0, len(flat), CHUNK):
        piece = flat[start : start + CHUNK].requires_grad_(True)
        logits = head(piece)
        part = F.cross_entropy(logits.float(), targets[start : start + CHUNK], reduction="sum") / len(targets)
        part.backward()
        gradient[start : start + CHUNK] = piece.grad
        loss += part.detach()
        if keep:
            kept.append(logits.detach())
    return gradient.view_as(hidden), loss, torch.cat(kept).unflatten(0, hidden.shape[:2]) if keep else None


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    body, head = model.base_model, model.get_output_embeddings()
    for step in range(num_steps):
        batch = next(data_iterator).to(device, non_blocking=True)
        hidden = body(batch[:, :-1]).last_hidden_state
        gradient, loss, logits = chunked_step(head, hidden, batch[:, 1:], keep=step == num_steps - 1)
        hidden.backward(gradient)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(logits, num_steps * batch.numel(), loss.item())
