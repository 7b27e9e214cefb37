"""Cheats against the default profile's way of judging, on a CPU: `python benchmarks/red_team.py {trivial,softmax} [--tokens F]`.

A bf16 Qwen2 of a few million parameters is trained by the cheat from an exam's weights and judged as the 3B profile is, with that
profile's shipped limits. Prints the audit, and what was nearest to its limit.

* trivial: after an honest first step three small tensors are set so that the true gradient of the late steps is one vector,
  and set back before the last; a few hundred of billions of weights.
* softmax: the partition sum from a sample of the vocabulary, the rows of tokens that are not in the batch from a share F of
  the tokens, re-weighted (Jean et al. 2015, arXiv:1412.2007, without its guarantees). The rest of the model is honest.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from crusades import hparams
from crusades.bench.inside.model import make_optimizer
from crusades.bench.referee import audit as audits
from crusades.bench.referee import verdict
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.exam import Exam, expected_of, optimizer_settings, prepare_exam
from crusades.bench.referee.models import CONFIGS, Reference, load_reference
from crusades.bench.referee.reads import Reader
from crusades.bench.referee.statistic import ratio
from crusades.records import Audit

NORM, INPUT, BIAS = "model.norm.weight", "model.layers.{}.input_layernorm.weight", "model.layers.{}.self_attn.v_proj.bias"
BIG = 1e10


@dataclass
class World:
    """One exam of a small model."""

    profile: hparams.Profile
    reference: Reference
    exam: Exam
    initial: torch.Tensor

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW whose moments are the shared memory's."""
        made = make_optimizer(list(self.reference.model.parameters()), optimizer_settings(self.profile))
        first, second = (self.reference.layout.views(m) for m in (self.reference.memory.exp_avg, self.reference.memory.exp_avg_sq))
        for name, parameter in self.reference.model.named_parameters():
            made.state[parameter] = {"step": torch.zeros(()), "exp_avg": first[name], "exp_avg_sq": second[name]}
        return made


Cheat = Callable[[World, Iterator[torch.Tensor], torch.optim.Optimizer], torch.Tensor]
"""Trains on the batches; returns the last step's logits at the exam's places."""


def world(folder: Path, *, vocabulary: int, layers: int, coordinates: int, columns: int, cells: int, learning_rate: float = 1e-5, std: float = 0.02) -> World:
    config = json.loads((CONFIGS / "qwen2.5-3b.json").read_text())
    config |= {"vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": layers, "num_attention_heads": 4,
               "num_key_value_heads": 2, "initializer_range": std}
    (folder / "config.json").write_text(json.dumps(config))
    shipped, replace = hparams.load().profile("qwen2.5-3b"), msgspec.structs.replace
    profile = replace(
        shipped, model=replace(shipped.model, config=str(folder / "config.json")), sequence_length=128, device="cpu", guaranteed_bytes=0, learning_rate=learning_rate,
        audit=replace(shipped.audit, coordinates=coordinates, column_coordinates=columns, cells=cells))  # fmt: skip
    reference = load_reference(profile.model, "cpu", None)
    initial = reference.redraw(1)
    return World(profile, reference, prepare_exam(reference, open_corpus(profile, reference.vocabulary, None), profile, initial, b"0" * 16), initial)


def honest_step(w: World, batch: torch.Tensor) -> torch.Tensor:
    logits = w.reference.model(batch[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten()).backward()
    return logits.detach().flatten(0, 1)[w.exam.logit_rows][:, w.exam.logit_columns].float()


def trivial(w: World, batches: Iterator[torch.Tensor], optimizer: torch.optim.Optimizer) -> torch.Tensor:
    parameters, top = dict(w.reference.model.named_parameters()), w.reference.layers - 1
    embedding, poisoned = parameters["model.embed_tokens.weight"], {NORM: 0.0, INPUT.format(top): 0.0, BIAS.format(top): BIG}

    def poison() -> None:
        with torch.no_grad():
            for name, value in poisoned.items():
                parameters[name].fill_(value)

    honest_step(w, next(batches))
    optimizer.step()
    saved = {name: parameters[name].detach().clone() for name in poisoned}
    poison()
    for _ in range(w.profile.steps - 2):
        targets = next(batches)[:, 1:].flatten()
        constant = (w.reference.model.model.layers[top].self_attn.o_proj.weight.detach().float().sum(1) * BIG).bfloat16().float()
        hidden = (constant * torch.rsqrt(constant.square().mean() + 1e-6)).bfloat16().float()
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        parameters[NORM].grad.copy_((embedding.detach().float().mean(0) - embedding.detach()[targets].float().mean(0)) * hidden)
        optimizer.step()
        poison()
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)
    optimizer.zero_grad(set_to_none=True)
    logits = honest_step(w, next(batches))
    optimizer.step()
    return logits


def sampled_softmax(share: float) -> Cheat:
    generator = torch.Generator().manual_seed(5)

    def head(weight: torch.Tensor, hidden: torch.Tensor, batch: torch.Tensor, part: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of `hidden` (tokens, width) and of the embedding, in float32."""
        tokens, targets = len(hidden), batch[:, 1:].flatten()
        seen = torch.unique(batch)
        unseen = torch.ones(len(weight), dtype=torch.bool).index_fill_(0, seen, False)
        others = unseen.nonzero()[:, 0]
        sample = others[torch.randperm(len(others), generator=generator)[: max(64, len(weight) // 18)]]
        own, drawn = hidden @ weight[seen].T, hidden @ weight[sample].T
        total = own.exp().sum(1) + len(others) / len(sample) * drawn.exp().sum(1)
        own = own.exp() / total[:, None]
        left = 1 - own.sum(1)
        own[torch.arange(tokens), torch.searchsorted(seen, targets)] -= 1
        to_hidden = (own @ weight[seen] + left[:, None] * (weight[unseen].mean(0) + weight[unseen].var() * hidden)) / tokens
        chosen = torch.randperm(tokens, generator=generator)[: int(tokens * part)]
        to_weight = torch.zeros_like(weight)
        to_weight[seen] = own.T @ hidden / tokens
        to_weight[unseen] = ((hidden[chosen] @ weight[unseen].T).exp() / total[chosen][:, None]).T @ hidden[chosen] / len(chosen)
        return to_hidden, to_weight

    def train(w: World, batches: Iterator[torch.Tensor], optimizer: torch.optim.Optimizer) -> torch.Tensor:
        embedding = w.reference.model.model.embed_tokens.weight
        for step, batch in enumerate(batches):
            hidden = w.reference.model.model(batch[:, :-1]).last_hidden_state
            flat, weight = hidden.detach().flatten(0, 1).float(), embedding.detach().float()
            to_hidden, to_weight = head(weight, flat, batch, share if step else min(1.0, 2 * share))
            logits = (flat @ weight.T)[w.exam.logit_rows][:, w.exam.logit_columns]
            hidden.backward(to_hidden.view(hidden.shape).to(hidden.dtype))
            embedding.grad += to_weight.to(embedding.dtype)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return logits

    return train


def judged(w: World, cheat: Cheat) -> Audit:
    """The run's audit."""
    adam = audits.Adam(**optimizer_settings(w.profile))
    w.reference.restore(w.initial)
    reader = Reader(w.reference, w.exam.sample, w.profile.steps)
    reader.read(0)

    def batches() -> Iterator[torch.Tensor]:
        for step, batch in enumerate(w.exam.batches):
            if step:
                reader.read(step)
            yield torch.from_numpy(batch)

    logits = cheat(w, batches(), w.optimizer())
    reader.read(w.profile.steps)
    w.reference.model.zero_grad(set_to_none=True)
    found = [*audits.audit(reader.result(), expected_of(w.exam, "cpu"), adam, w.profile.audit.group_min), verdict.finite_result(0.0, logits)]
    return verdict.judge(found, w.profile.limits)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cheat", choices=("trivial", "softmax"))
    parser.add_argument("--tokens", type=float, default=0.125, help="share of the tokens that the other rows come from (twice that in the first step)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.cheat == "trivial":
            w, cheat = world(Path(folder), vocabulary=8192, layers=4, coordinates=260_000, columns=4096, cells=16), trivial
        else:
            w = world(Path(folder), vocabulary=19_008, layers=3, coordinates=200_000, columns=2048, cells=8, learning_rate=8e-5, std=0.0566)
            cheat = sampled_softmax(given.tokens)
        audit = judged(w, cheat)
        print(f"{'passes' if audit.passed else 'REJECTED'}: {audit.words}", flush=True)
        judged_ones = [s for s in audit.statistics if s.limit]
        for s in sorted(judged_ones, key=lambda s: -ratio(s.value, s.limit))[:6]:
            print(f"    {s.name:28s} {s.value:9.4g} of {s.limit:9.4g}  {s.where}")


if __name__ == "__main__":
    main()
