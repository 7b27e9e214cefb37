"""Model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B). Pure."""

from __future__ import annotations

import re
from statistics import median

import msgspec

PEAK_TFLOPS: dict[str, float] = {
    # Dense bf16 tensor-core peaks from NVIDIA's data sheets, in TFLOP/s; by the words of the name that its driver gives (`table_peak`).
    "NVIDIA B200": 2250.0,
    "NVIDIA GB200": 2500.0,
    "NVIDIA H200": 989.4,
    "NVIDIA H100": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA A100": 312.0,
    "NVIDIA A800": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A40": 149.7,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada": 364.2,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71.0,
}

FORMS = frozenset({"pcie", "sxm", "sxm4", "sxm5", "40gb", "80gb", "hbm3", "generation"})
"""Words that a driver adds to a card's name and that leave its peak alone, or not: then the table has both. Whatever else is added
names another card ("Ti", "D", "NVL", "Laptop GPU"), a part of one ("MIG 3g.40gb", "48Q") or one made for one customer ("64GB")."""


class Peak(msgspec.Struct, frozen=True):
    """A device's dense peak and where the number comes from."""

    tflops: float
    source: str
    """"hparams", "table" or "measured"."""


def table_peak(device: str) -> float | None:
    """Data-sheet peak in TFLOP/s of a device by its name; None when unknown. The name must have all words of the table's and beside
    them none but `FORMS`: a score is a share of this number, and a measured peak, which says so, beats one of another card."""
    told = _words(device)
    matches = [name for name in PEAK_TFLOPS if _words(name) <= told and told - _words(name) <= FORMS]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[ -]+", name.strip().lower()))


def flops_per_token(parameters: int, *, layers: int = 0, hidden: int = 0, sequence_length: int = 0, attention: bool = False) -> float:
    """6·N for forward and backward; with `attention` plus 12·L·H·T (PaLM). Tied embeddings are counted once in `parameters`."""
    return 6.0 * parameters + (12.0 * layers * hidden * sequence_length if attention else 0.0)


def mfu_percent(flops_token: float, tokens: int, seconds: float, peak_tflops: float) -> float:
    """Share of the device's peak in percent."""
    return 100.0 * flops_token * tokens / (seconds * peak_tflops * 1e12)


def unevenness(mfus: list[float]) -> float:
    """By what share the fastest run beats the score: what keeps a card waiting makes runs slower and none faster. 0 below three runs,
    of which no median could be trusted more than another."""
    return max(mfus) / median(mfus) - 1.0 if len(mfus) > 2 else 0.0


def score(mfus: list[float]) -> float:
    """The score of a submission: the median over its scored runs. ValueError when there is none."""
    if not mfus:
        raise ValueError("no scored run")
    return float(median(mfus))
