"""The reference's loss gives what torch's own gives, in less memory."""

import pytest
import torch
import torch.nn.functional as F

from crusades.bench.referee import loss


@pytest.mark.parametrize(("rows", "dtype"), [(5, torch.float32), (64, torch.float32), (64, torch.bfloat16)])
def test_losses_and_gradients_are_those_of_cross_entropy_in_float32(monkeypatch, rows, dtype):
    monkeypatch.setattr(loss, "ROWS", 24)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, 100, generator=generator).to(dtype)
    labels, upstream = torch.randint(0, 100, (rows,), generator=generator), torch.rand(rows, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = loss.losses(ours, labels), F.cross_entropy(theirs.float(), labels, reduction="none")
    assert torch.equal(found, expected)
    found.backward(upstream)
    expected.backward(upstream)
    assert ours.grad.dtype == dtype
    assert torch.allclose(ours.grad.float(), theirs.grad.float(), rtol=0.01 if dtype == torch.bfloat16 else 1e-5, atol=1e-8)
