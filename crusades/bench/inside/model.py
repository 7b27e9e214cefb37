"""Build a causal LM without its weights, and make its parameters views of foreign memory.

Used by the harness and by the referee, so that both run the same architecture. Imports torch and transformers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While active, every parameter that a module registers lands on the meta device; buffers are computed as usual."""
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def build(config: dict[str, Any], model_type: str, dtype: str, attention: str) -> nn.Module:
    """The architecture of `config` in training mode, parameters on meta, buffers on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in config.items() if k not in ("model_type", "transformers_version", "dtype", "torch_dtype")}
    settings = AutoConfig.for_model(model_type, **values)
    settings.use_cache = False
    _without_dropout(settings)
    with parameters_on_meta():
        model: nn.Module = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype), attn_implementation=attention)
    model.train()
    return model


def _without_dropout(settings: Any) -> None:
    """Set every probability of a configuration that drops something to 0: training is on, and two honest runs must not differ."""
    for name, value in list(vars(settings).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):  # the configuration of a part
            _without_dropout(value)
        elif "drop" in name.lower() and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(settings, name, 0.0)


def bind(model: nn.Module, views: dict[str, torch.Tensor], device: str) -> None:
    """Replace every parameter by the view of its name (tied ones by the same object) and move the buffers to `device`."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, leaf))
    for name, parameter in list(model.named_parameters()):
        fresh = nn.Parameter(views[name])
        for module, leaf in owners[id(parameter)]:
            setattr(module, leaf, fresh)
    _move_plain_tensors(model, device)


def _move_plain_tensors(model: nn.Module, device: str) -> None:
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(device)
        for leaf, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):  # rotary embeddings keep a second copy as a plain attribute
                setattr(module, leaf, value.to(device))


def make_optimizer(parameters: list[nn.Parameter], settings: dict[str, float]) -> torch.optim.AdamW:
    """The competition's AdamW (Loshchilov & Hutter, arXiv:1711.05101): fused on CUDA, torch's default elsewhere."""
    return torch.optim.AdamW(
        parameters,
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
        weight_decay=settings["weight_decay"],
        fused=parameters[0].is_cuda or None,
    )
