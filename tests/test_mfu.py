"""MFU by hand."""

import pytest

from crusades.bench import mfu


def test_six_flops_per_parameter_and_token():
    assert mfu.flops_per_token(3_000_000_000) == 18e9


def test_the_attention_term_is_an_option():
    assert mfu.flops_per_token(10, layers=2, hidden=3, sequence_length=5, attention=True) == 60 + 12 * 2 * 3 * 5


def test_a_card_at_its_peak_has_one_hundred_percent():
    assert mfu.mfu_percent(1e12, 1000, 1.0, 1000.0) == pytest.approx(100.0)


KNOWN = {
    "NVIDIA B200": 2250.0, "NVIDIA GB200": 2500.0, "NVIDIA H200": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756.0, "NVIDIA H100 NVL": 835.0,
    "NVIDIA A100-SXM4-40GB": 312.0, "NVIDIA A100-SXM4-80GB": 312.0, "NVIDIA A100-SXM-80GB": 312.0, "NVIDIA A100-PCIE-40GB": 312.0, "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A800-SXM4-80GB": 312.0, "NVIDIA A800 80GB PCIe": 312.0,
    "NVIDIA L40S": 362.0, "NVIDIA L4": 121.0, "NVIDIA A10": 125.0, "NVIDIA A40": 149.7, "NVIDIA RTX A6000": 154.8, "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA GeForce RTX 4090": 165.2, "NVIDIA GeForce RTX 3090": 71.0,
}  # fmt: skip
"""Names as drivers give them (the list of supported products in NVIDIA's driver documentation)."""
OTHERS = (
    "NVIDIA L40", "NVIDIA L40G", "NVIDIA A10G", "NVIDIA A100X", "NVIDIA A30", "NVIDIA H200 NVL", "NVIDIA H20", "NVIDIA GH200 480GB", "NVIDIA A100-SXM-64GB",
    "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX 6000", "Quadro RTX 6000",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA A40-48Q", "NVIDIA L4-24Q", "NVIDIA", "", "Radeon",
)  # fmt: skip
"""Cards, and parts of cards, whose peak is not in the table."""


@pytest.mark.parametrize(("name", "peak"), KNOWN.items())
def test_a_cards_peak_is_found_by_the_name_that_its_driver_gives(name, peak):
    assert mfu.table_peak(name) == peak


def test_every_row_of_the_table_is_found_by_a_real_name():
    assert {mfu.table_peak(name) for name in KNOWN} == set(mfu.PEAK_TFLOPS.values())


@pytest.mark.parametrize("name", OTHERS)
def test_a_card_that_is_named_like_another_has_not_its_peak(name):
    assert mfu.table_peak(name) is None


def test_the_score_is_the_median():
    assert mfu.score([50.0, 10.0, 51.0]) == 50.0


def test_no_scored_run_is_no_score():
    with pytest.raises(ValueError, match="no scored run"):
        mfu.score([])


def test_unevenness_is_what_the_fastest_run_is_ahead_of_the_median():
    assert mfu.unevenness([40.0, 42.0, 10.0]) == pytest.approx(0.05)


@pytest.mark.parametrize("few", [[], [1.0], [1.0, 2.0]])
def test_fewer_than_three_runs_cannot_be_uneven(few):
    assert mfu.unevenness(few) == 0.0
