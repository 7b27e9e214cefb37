"""Whatever branches the best head wanders through, and whatever reads fail, the store ends at what the chain finalised."""

import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_kit import opened, refused, revealed, sealed

from crusades.records import Status
from crusades.store_tools import run_verify

END = 40
HOTKEYS = ("5A", "5B")


@st.composite
def histories(draw):
    """Per hotkey, commitments of the winning branch: (commit block, reveal block or None for one that was overwritten or is still sealed)."""
    chain = {}
    for hotkey in HOTKEYS:
        blocks = sorted(draw(st.sets(st.integers(1, END - 2), min_size=1, max_size=5)))
        commits = []
        for here, following in zip(blocks, [*blocks[1:], END + 5], strict=False):
            opened_at = draw(st.integers(here + 1, here + 4))
            commits.append((here, opened_at if opened_at <= min(following, END) else None))
        chain[hotkey] = commits
    return chain


READS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7), st.sampled_from(["same", "other content", "moved", "absent"]), st.booleans(), st.booleans()), min_size=4, max_size=14)
"""(blocks since the last read, finality lag, what the best head shows beyond finality, the read fails, we restart)"""


def state_at(chain, block, *, final):
    rows = []
    for hotkey, commits in chain.items():
        seen = [(c, r) for c, r in commits if c <= block]
        for place, (commit, reveal) in enumerate(seen):
            if reveal is not None and reveal <= block:
                rows.append(revealed(hotkey, commit, reveal=reveal, text=f"{hotkey}{commit}", final=final))
            elif place == len(seen) - 1:
                rows.append(sealed(hotkey, commit, final=final))
            else:
                rows.append(refused(hotkey, commit, name="overwritten", final=final))
    return rows


def best_view(chain, head, finalized, branch):
    """The best head: the winning branch, or one that differs from it in everything that is not final."""
    if branch == "same":
        return state_at(chain, head, final=False)
    rows = state_at(chain, finalized, final=False)
    if branch == "absent":
        return rows
    for hotkey, commits in chain.items():
        for commit, reveal in commits:
            if finalized < commit <= head and reveal is not None and reveal <= head:
                text = f"{hotkey}{commit}" if branch == "moved" else "of the losing branch"
                there = min(commit + 1, reveal - 1) if branch == "moved" else commit
                if there > finalized:
                    rows.append(revealed(hotkey, there, reveal=reveal, text=text, final=False))
    return rows


def read(chain, head, finalized, branch):
    rows = state_at(chain, finalized, final=True)
    known = {(row.submission_id, row.state) for row in rows}
    return [*rows, *(row for row in best_view(chain, head, finalized, branch) if (row.submission_id, row.state) not in known)]


async def play(chain, reads, folder):
    head = 0
    remaining = list(reads)
    while True:
        async with opened(folder) as store:
            while remaining:
                step, lag, branch, fails, restart = remaining.pop(0)
                head = min(head + step, END)
                if not fails:
                    finalized = max(0, head - lag)
                    rows = read(chain, head, finalized, branch)
                    await store.record_commitments(rows, head, finalized)
                    seq = store.last_seq
                    await store.record_commitments(rows, head, finalized)
                    assert store.last_seq == seq, "the same read twice changed something"
                if restart:
                    break
            else:
                rows = state_at(chain, END, final=True)
                await store.record_commitments(rows, END, END)
                check(chain, (await store.submissions(limit=500)).items, await store.cursor())
                return


def check(chain, rows, cursor):
    assert cursor == END
    assert not any(row.provisional for row in rows), "everything is decided once all is final"
    kept = {(row.hotkey, row.commit_block): row for row in rows if row.reason is None or row.reason.code != 1008}
    assert set(kept) == {(hotkey, commit) for hotkey, commits in chain.items() for commit, _ in commits}, "nothing lost, nothing of a losing branch kept"
    for hotkey, commits in chain.items():
        for place, (commit, reveal) in enumerate(commits):
            row = kept[hotkey, commit]
            if reveal is not None:
                assert (row.status, row.reveal_block) == (Status.REVEALED, reveal)
                assert row.sha256 == revealed(text=f"{hotkey}{commit}").payload.sha256
            else:
                assert row.status is (Status.SEALED if place == len(commits) - 1 else Status.REJECTED)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories(), READS)
def test_the_end_is_what_the_chain_finalised(chain, reads):
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play, chain, reads, Path(folder))
        assert run_verify(Path(folder)) == [] or not any(chain.values())
