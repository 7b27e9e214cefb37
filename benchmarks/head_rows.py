"""How far off the head's gradient for its hidden states is from a part of its rows: `python benchmarks/head_rows.py [--profile P] [--tokens N] [--scale S]`.

One forward pass of a profile's random start on the CPU, in fp32, a layer's weights at a time (the 3B profile: 5 GB, one or two
minutes), then the estimates that `variants_softmax.py` makes of what the softmax gives the hidden states, on one sequence. Prints
one JSON object: how far the softmax's own part goes beyond moments (`delta`), how much of what probabilities differ by is in the
largest rows, and of each estimate the coefficient of delta in its error (what `softmax_attribution` looks at, rms of eight draws), the
error as a share of the gradient, and what tokens have of it in common. bf16 has no part in it.
"""

from __future__ import annotations

import argparse
import json

import torch
from transformers import AutoConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from crusades import hparams
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.models import read_config
from crusades.bench.referee.variants_softmax import chances

DRAWS = 8
SHARES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def start(name: str, scale: float, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Final hidden states (tokens, hidden) of one sequence, the head's weights, and the sequence with its last label (tokens + 1,)."""
    config = AutoConfig.for_model(**read_config(name))
    config._attn_implementation = "sdpa"
    width = config.initializer_range
    weight = torch.randn(config.vocab_size, config.hidden_size) * width * scale
    sequence = torch.from_numpy(SyntheticCorpus(config.vocab_size).draw(b"head rows", 1, tokens + 1))
    x = weight[sequence[:, :-1]]
    positions = Qwen2RotaryEmbedding(config)(x, torch.arange(tokens)[None])
    for number in range(config.num_hidden_layers):
        layer = Qwen2DecoderLayer(config, number)
        for key, value in layer.named_parameters():
            value.fill_(1) if "layernorm" in key else value.zero_() if key.endswith("bias") else value.normal_(0, width)
        x = layer(x, position_embeddings=positions, attention_mask=None)
    return Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)(x)[0], weight, sequence[0]


def estimates(hidden: torch.Tensor, weight: torch.Tensor, sequence: torch.Tensor) -> dict[str, object]:
    """Everything that is printed."""
    probabilities = torch.softmax(hidden @ weight.t(), 1)
    gradient = probabilities @ weight - weight[sequence[1:]]
    unseen = torch.ones(len(weight), dtype=torch.bool).index_fill_(0, sequence, False)
    rows, some = weight[unseen], probabilities[:, unseen]
    left = some.sum(1, keepdim=True)
    true, by_moments = some @ rows, left * (rows.mean(0) + rows.var() * hidden)
    mean = some.sum(0) / left.sum()
    differs = some - left * mean
    size, by_mean, delta = differs.norm(dim=0), left * (mean @ rows), true - by_moments

    def any_rows(share: float) -> torch.Tensor:
        return torch.full((len(rows),), share)

    def large_rows(share: float) -> torch.Tensor:
        return chances(size, int(share * len(rows)))

    def sampled(base: torch.Tensor, rest: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(len(rows)) < chance
        return base + (rest[:, drawn] / chance[drawn]) @ rows[drawn]

    def moments_and_any(share: float) -> torch.Tensor:
        drawn = torch.rand(len(rows)) < share
        of_moments = some[:, drawn].sum(1, keepdim=True) * (rows.mean(0) + rows.var() * hidden)
        return by_moments + (some[:, drawn] @ rows[drawn] - of_moments) / share

    ways = {
        "moments, any rows": moments_and_any,
        "mean, any rows": lambda share: sampled(by_mean, differs, any_rows(share)),
        "mean, large rows first": lambda share: sampled(by_mean, differs, large_rows(share)),
    }
    found: dict[str, object] = {"delta": float(delta.norm() / gradient.norm())}
    energy = size.square().sort(descending=True).values
    found["in_largest_rows"] = {f"{share:.4g}": float(energy[: int(share * len(rows))].sum() / energy.sum()) for share in SHARES}
    for name, way in ways.items():
        for share in SHARES:
            errors = [way(share) - true for _ in range(DRAWS)]
            found[f"{name}, {share:.4g}"] = {
                "coefficient": float(torch.stack([(e * delta).sum() / delta.square().sum() for e in errors]).square().mean().sqrt()),
                "error": float(torch.stack([e.norm() for e in errors]).mean() / gradient.norm()),
                "in_common": float(torch.stack([e.mean(0).norm() for e in errors]).mean() / gradient.mean(0).norm()),
            }
    return found


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--scale", type=float, help="of the vocabulary's rows (default: the profile's)")
    arguments = parser.parse_args()
    model = hparams.load().profile(arguments.profile).model
    if not model.config or read_config(model.config)["model_type"] != "qwen2":
        parser.error(f"profile {arguments.profile} has no random start of a Qwen2")
    scale = arguments.scale or model.vocabulary_scale
    torch.manual_seed(0)
    with torch.no_grad():
        found = estimates(*start(model.config, scale, arguments.tokens))
    print(json.dumps({"profile": arguments.profile, "tokens": arguments.tokens, "scale": scale} | found, indent=1))


if __name__ == "__main__":
    main()
