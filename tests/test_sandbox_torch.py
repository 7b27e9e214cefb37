"""What honest submissions need works behind the final walls: torch, its threads, transformers, torch.compile with the compiler inside."""

import pytest
from sandbox_kit import needs_sandbox, run

from crusades import hparams
from crusades.sandbox.policy import contestant_policy

pytestmark = [pytest.mark.kernel, pytest.mark.slow, needs_sandbox]


async def test_torch_trains_and_compiles():
    ran = await run(
        """
        import torch, transformers, threading
        model = torch.nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        torch.compile(lambda x: (model(x).sin() + 1).sum())(torch.randn(4, 8)).backward()
        optimizer.step()
        thread = threading.Thread(target=lambda: torch.randn(200, 200) @ torch.randn(200, 200)); thread.start(); thread.join()
        say([model.weight.grad is not None, transformers.__name__, os.path.isdir('/tmp/inductor')])
        """,
        using=contestant_policy(hparams.Sandbox()),
        deadline=240,
    )
    assert ran.said == [True, "transformers", True]
