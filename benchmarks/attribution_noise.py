"""How far off the attributions of honest work are, and how visible shortcuts are in them, by the way they are solved for:
`python benchmarks/attribution_noise.py [--profile P] [--device cuda] [--exams 0-12] [--only TEXT …] [--submission F …] --out FILE`.

Trains variants of `calibrate` on its exams, and at every anchored step (and the first) solves for the parts of each family with
several ridges, with and without taking each tensor's own scale out first. One JSON line per variant, exam and step; and the
error, projection and median error of groups of coordinates: the vocabulary's rows of tokens that are in the batch, that no
batch had yet, that only earlier ones had, all others, and all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

from crusades import hparams
from crusades.bench.referee import audit as audits
from crusades.bench.referee.anchored import fine_parts
from crusades.bench.referee.calibrate import CalibrateConfig, exam_of, population, shape_of
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.exam import ReferencePass, expected_of
from crusades.bench.referee.lab import Lab, copies_for
from crusades.bench.referee.measured import BEFORE, BODY, SEEN, UNSEEN
from crusades.bench.referee.models import load_reference

RIDGES = (1e-9, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def solved(columns, target, base, tensors, own_scale):
    """ridge → deviations (k,) of the coefficients of `target` (c,) from those of `base` (c,), by columns (k, c), float64."""
    x, t, b = columns.double(), target.double(), base.double()
    gram, right = x @ x.T, x @ (t - b)
    if own_scale:
        count = int(tensors.max()) + 1
        energy = torch.zeros(count, dtype=torch.float64, device=x.device).index_add_(0, tensors, b * b).clamp_min(1e-300)
        along = torch.zeros(len(x), count, dtype=torch.float64, device=x.device).index_add_(1, tensors, x * b)
        off = torch.zeros(count, dtype=torch.float64, device=x.device).index_add_(0, tensors, (t - b) * b)
        before = gram.diagonal().sqrt()
        gram, right = gram - (along / energy) @ along.T, right - along @ (off / energy)
    else:
        before = gram.diagonal().sqrt()
    scale = torch.where(before > 0, before, torch.ones_like(before))
    gram, right = gram / scale[:, None] / scale[None, :], right / scale
    values = torch.linalg.eigvalsh(gram)
    found = {"eigenvalues": [float(f"{v:.3g}") for v in values[[0, len(values) // 4, len(values) // 2, -2, -1]]]}
    for ridge in RIDGES:
        off = torch.linalg.solve(gram + ridge * torch.eye(len(scale), dtype=torch.float64, device=x.device), right) / scale
        found[f"{ridge:g}"] = [float(f"{v:.4g}") for v in (off.abs().max(), off.square().mean().sqrt(), off.median(), off.mean(), (off - off.mean()).abs().max(), off.std())]
    return found


def groups(g, ref, masks):
    """group → error, projection − 1, median error."""
    found = {}
    for name, mask in masks.items():
        a, b = g[mask].double(), ref[mask].double()
        if len(b):
            share = ((a - b).abs() / b.abs())[b != 0]
            found[name] = [float(f"{v:.4g}") for v in ((a - b).norm() / b.norm(), (a @ b) / (b @ b) - 1, share.median())]
    return found


class Probe(Lab):
    """A lab that writes down what is looked for in place of the anchored statistics."""

    def probe(self, step, g, expected):
        even = audits._even(expected)[0]
        standing = self.exam.standings[step].to(g.device)
        masks = {"seen": standing == SEEN, "unseen": standing == UNSEEN, "before": standing == BEFORE, "body": standing == BODY, "all": standing >= 0}
        found = {"step": step + 1, "groups": groups(g[0] * even, expected.gradient[0] * even, masks)}
        weight = even[expected.chosen]
        target, base, tensors = (g[0] * even)[expected.chosen], (expected.gradient[0] * even)[expected.chosen], expected.groups["tensor"][0][expected.chosen]
        for family, (first, last) in expected.families.items():
            columns = expected.columns[0][first:last] * weight
            for own_scale in (False, True):
                found[f"{family}{', own scale' if own_scale else ''}"] = solved(columns, target, base, tensors, own_scale)
        return found

    def _anchored(self, reads, adam, claims, first):
        expected = expected_of(self.exam, self.reference.device)
        one = dataclasses.replace(expected, gradient=expected.gradient[:1], columns=expected.columns[:1])
        self.found = [self.probe(0, audits.gradients(reads.exp_avg[:2], adam.beta1), one)]
        for step, weights in self.copies.items():
            if step < first:
                continue
            self.reference.restore(weights)
            pass_ = ReferencePass(self.reference, self.profile, self.exam)
            parts = fine_parts(self.exam, step, self.profile)
            gradient, columns = pass_.gradient(self.exam.batches[step], parts)
            self.reference.model.zero_grad(set_to_none=True)
            own = dataclasses.replace(expected, gradient=gradient[None], columns=columns[None], families=parts.families, part_names=parts.names)
            self.found.append(self.probe(step, audits.gradients(reads.exp_avg[step : step + 2].to(self.reference.device), adam.beta1), own))
        return []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--exams", default="0")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--submission", action="append", default=[], type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    first, _, last = given.exams.partition("-")
    profile = hparams.load().profile(given.profile)
    config = CalibrateConfig(profile=profile, profile_name=given.profile, device=given.device, out=given.out.parent, submissions=tuple(given.submission))
    reference = load_reference(profile.model, given.device, None)
    corpus = open_corpus(profile, reference.vocabulary, None)
    shape = shape_of(reference.layout, reference.config)
    variants = [v for v in population(config, shape, (0.005, 0.01, 0.02, 0.05)) if v.name in given.only]
    variants += [v for v in population(config, shape, ()) if v.recipe.submission]
    copies, initial, started = copies_for(reference, profile.steps), None, time.monotonic()
    for number in range(int(first), int(last or first) + 1):
        exam, initial = exam_of(reference, corpus, profile, number, initial)
        for variant in variants:
            if time.monotonic() - started > given.seconds:
                return
            lab = Probe(reference, profile, exam, initial, keep_previous=variant.keep_previous, copies=copies)
            lab.measure(variant.recipe)
            with given.out.open("a") as file:
                for found in lab.found:
                    file.write(json.dumps({"variant": variant.name, "exam": number, **found}) + "\n")
            print(f"{time.monotonic() - started:6.1f} s  exam {number}: {variant.name}", flush=True)


if __name__ == "__main__":
    main()
