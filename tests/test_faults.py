"""The fault table: one place for code, API, TUI and docs."""

from pathlib import Path

import pytest

from crusades.faults import FAULTS, Whose, as_markdown

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_is_the_table():
    assert (DOCS / "faults.md").read_text() == as_markdown(), "python -m crusades.faults > docs/faults.md"


@pytest.mark.parametrize("row", FAULTS.values(), ids=lambda row: row.name)
def test_every_row_says_who_acts_what_happened_and_what_to_do(row):
    assert row.whose is {1: Whose.SUBMISSION, 2: Whose.VALIDATOR, 3: Whose.OUTSIDE}[row.code // 1000]
    assert row.terminal is (row.whose is Whose.SUBMISSION)
    assert row.title
    assert row.advice
    assert "|" not in row.title + row.advice
