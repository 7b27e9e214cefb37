"""MFU by hand."""

import pytest

from crusades.bench import mfu


def test_six_flops_per_parameter_and_token():
    assert mfu.flops_per_token(3_000_000_000) == 18e9


def test_the_attention_term_is_an_option():
    assert mfu.flops_per_token(10, layers=2, hidden=3, sequence_length=5, attention=True) == 60 + 12 * 2 * 3 * 5


def test_a_card_at_its_peak_has_one_hundred_percent():
    assert mfu.mfu_percent(1e12, 1000, 1.0, 1000.0) == pytest.approx(100.0)


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA A100-SXM4-80GB", 312.0), ("Radeon", None)])
def test_the_longest_matching_name_gives_the_peak(name, peak):
    assert mfu.table_peak(name) == peak


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
