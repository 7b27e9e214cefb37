"""A submission that runs here, in plain memory, without sandbox, referee or audit: what the benchmarks of a file itself share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crusades import hparams
from crusades.bench.inside.model import make_optimizer
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.exam import optimizer_settings
from crusades.bench.referee.models import load_reference


class Plain:
    """`path` loaded beside the profile's model; `run` calls its inner_steps on random batches."""

    def __init__(self, path: Path, profile: str, device: str) -> None:
        if not path.is_file():
            raise SystemExit(f"there is no file {path}")
        self.profile, self.device = hparams.load().profile(profile), device
        self.reference = load_reference(self.profile.model, device, None)
        self._corpus = open_corpus(self.profile, self.reference.vocabulary, None)
        spec = importlib.util.spec_from_file_location("train", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{path} is no Python file")
        self._module = importlib.util.module_from_spec(spec)
        sys.modules["train"] = self._module
        spec.loader.exec_module(self._module)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def run(self, seed: int, mark: Callable[[], None]) -> Any:
        """What inner_steps returns from the initial weights. `mark` is called when it is called, before every later step, and at its end,
        when the device is idle: as the referee's clock."""
        profile, reference = self.profile, self.reference
        reference.restore()
        optimizer = make_optimizer(list(reference.model.parameters()), optimizer_settings(profile))
        first, second = (reference.layout.views(m) for m in (reference.memory.exp_avg, reference.memory.exp_avg_sq))
        for name, parameter in reference.model.named_parameters():
            optimizer.state[parameter] = {"step": torch.zeros((), device=self.device), "exp_avg": first[name], "exp_avg_sq": second[name]}
        rows = self._corpus.draw(bytes([seed % 256]), profile.steps * profile.batch_size, profile.sequence_length)
        batches = [torch.from_numpy(b) for b in rows.reshape(profile.steps, profile.batch_size, profile.sequence_length)]

        def drip() -> Any:
            yield batches[0]
            for batch in batches[1:]:
                self.synchronize()
                mark()
                yield batch

        self.synchronize()
        mark()
        result = self._module.inner_steps(reference.model, drip(), optimizer, profile.steps, torch.device(self.device))
        self.synchronize()
        mark()
        return result
