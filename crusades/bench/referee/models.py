"""The referee's model: built by the same code as the contestant's, its parameters views of the shared memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crusades.bench.inside import model as shared
from crusades.bench.referee import memory as memories
from crusades.bench.referee.layout import Layout, kind_of, layout_of, of_vocabulary
from crusades.errors import ConfigError
from crusades.hparams import Model

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass
class Reference:
    """A model whose parameters live in `memory`, and the weights that every run starts from."""

    model: nn.Module
    layout: Layout
    memory: memories.Memory
    config: dict[str, Any]
    model_type: str
    name: str
    device: str
    initial: torch.Tensor
    """Flat initial weights (elements,) on the host; pinned when the device is a GPU."""
    pretrained: bool
    vocabulary_scale: float = 1.0
    """Of a random start: how much wider than the other matrices the rows of the vocabulary are drawn."""
    _begun: torch.Tensor | None = None
    """What the memory is being restored to, beside other work (`begin_restore`)."""

    def __post_init__(self) -> None:
        self._beside = memories.Beside(self.device)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 0)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.config.get("hidden_size") or self.config.get("n_embd") or 0)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.config["vocab_size"])

    def clear(self) -> None:
        """Everything zero: weights, moments, and what lies between them; done when this returns."""
        self.abandon_restore()
        self.memory.clear()
        self.wait()

    def restore(self, initial: torch.Tensor | None = None) -> None:
        """Initial weights back, moments zero, and nothing between the segments; done when this returns."""
        self.abandon_restore()
        self._write(self.initial if initial is None else initial)
        self.wait()

    def begin_restore(self, initial: torch.Tensor | None = None) -> None:
        """Begin what `restore` does, beside what the device does until `finish_restore`: nothing that needs the shared memory."""
        self._begun = self.initial if initial is None else initial
        with self._beside.begin():
            self._write(self._begun)

    def finish_restore(self, initial: torch.Tensor | None = None) -> None:
        """What is left of `restore`, or all of it when nothing was begun, or with other weights, or cleared since."""
        wanted, begun = self.initial if initial is None else initial, self._begun
        self.abandon_restore()
        if begun is not wanted:
            self.restore(wanted)

    def abandon_restore(self) -> None:
        """Wait for what was begun, if anything was, and do not count on it: the memory is wanted for something else."""
        self._begun = None
        self._beside.finish()

    def wait(self) -> None:
        """Until all that the device was asked for is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _write(self, weights: torch.Tensor) -> None:
        self.memory.clear()
        self.memory.weights.copy_(weights, non_blocking=True)

    def redraw(self, seed: int, into: torch.Tensor | None = None) -> torch.Tensor:
        """New random initial weights (flat, on the host, pinned on a GPU), in the memory of `into` if given, which is another
        tensor all the same: whoever has a copy of the old ones can tell. Pretrained models keep theirs.

        Biases are zero, norms one, matrices N(0, initializer_range), as Hugging Face initialises the Llama family; rows of the
        vocabulary with `vocabulary_scale` times that range.
        """
        if self.pretrained:
            return self.initial
        flat = torch.zeros(self.layout.elements, dtype=self.layout.dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        std = float(self.config.get("initializer_range") or 0.02)
        for spec, view in zip(self.layout.specs, self.layout.views(flat).values(), strict=True):
            kind = kind_of(spec.name)
            if kind == "norm":
                view.fill_(1.0)
            elif kind != "bias":
                view.normal_(0.0, std * (self.vocabulary_scale if of_vocabulary(spec, self.vocabulary) else 1.0), generator=generator)
        host = memories.host_buffer(self.layout.elements, self.layout.dtype, self.device) if into is None else into
        return host.copy_(flat).detach()


def read_config(name: str) -> dict[str, Any]:
    """A model configuration: one that ships with the project by name, or a JSON file by path. Raises ConfigError."""
    path = CONFIGS / f"{name}.json" if (CONFIGS / f"{name}.json").is_file() else Path(name)
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise ConfigError(f"model config {name!r} cannot be read ({error}); configs that ship: {known}") from error
    if "model_type" not in config:
        raise ConfigError(f"model config {path} has no model_type")
    return config


def load_reference(settings: Model, device: str, cache_dir: Path | None, profile_name: str = "") -> Reference:
    """The model of a profile in shared memory on `device`. Raises ConfigError (missing, damaged, too large for the host) or DeviceFault (for the card)."""
    source: nn.Module | None = None
    if settings.config:
        config = read_config(settings.config)
        name = f"{Path(settings.config).stem} (random initialisation)"
    else:
        from crusades.bench.referee.cache import load_pretrained

        source, config, name = load_pretrained(settings, cache_dir, profile_name)
    model_type = str(config["model_type"])
    model = shared.build(config, model_type, settings.dtype, settings.attention)
    layout = layout_of(model, getattr(torch, settings.dtype))
    shared_memory = memories.allocate(layout, device)
    shared_memory.clear()  # the room between parameters too, which becomes a part of the initial weights
    views = layout.views(shared_memory.weights)
    shared.bind(model, views, device)
    reference = Reference(model, layout, shared_memory, config, model_type, name, device, torch.empty(0), source is not None, settings.vocabulary_scale)
    if source is None:
        reference.initial = reference.redraw(0)
    else:
        _refuse_trained_buffers(source, model, name)
        parameters = dict(source.named_parameters())
        with torch.no_grad():
            for key, view in views.items():
                view.copy_(parameters[key])
        reference.initial = memories.host_buffer(layout.elements, layout.dtype, device).copy_(shared_memory.weights)
    reference.restore()
    return reference


def _refuse_trained_buffers(source: nn.Module, built: nn.Module, name: str) -> None:
    """A contestant gets the parameters, and computes the buffers from the configuration: what is neither would be lost."""
    computed = dict(built.named_buffers())
    for key, value in _saved_buffers(source).items():
        if key not in computed or computed[key].shape != value.shape or not torch.equal(computed[key].cpu().to(value.dtype), value):
            raise ConfigError(f"model {name} cannot be raced: its buffer {key} is part of its weights and does not follow from its configuration")


def _saved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{leaf}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        for leaf, buffer in module._buffers.items()
        if buffer is not None and leaf not in module._non_persistent_buffers_set
    }
