"""The real everything: chain, miners, file host, validator, sandbox, referee, audit, scores, weights. Nothing is faked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PATIENCE = 540
"""Seconds; the budget on an idle machine with two cores is 180, and a busy one must not make the test lie."""


def left_behind(folder):
    """Processes of the demo in `folder` that should be gone: those that name it, and those that live in it (a referee)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                home = os.readlink(entry / "cwd")
            except OSError:
                continue
            if f"{home}/".startswith(f"{folder}/") or any(str(folder).encode() in word for word in words):
                found.append(b" ".join(words).decode(errors="replace"))
    return found


def test_a_process_that_only_lives_in_the_folder_is_found(tmp_path):
    """A referee's command does not name it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=tmp_path) as process:
        assert len(left_behind(tmp_path)) == 1
        process.stdin.close()
    assert left_behind(tmp_path) == []


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """One demo for all tests of this file."""
    temporary = tmp_path_factory.mktemp("tmp")
    command = [sys.executable, "-m", "crusades.cli", "demo", "--once", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, "TMPDIR": str(temporary)})
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout), done.stderr, temporary


def test_every_example_gets_the_verdict_that_it_deserves_with_the_right_rule(outcome):
    code, document, words, _ = outcome
    wrong = [s for s in document["submissions"] if not s["as_expected"]]
    assert not wrong, wrong
    assert code == 0, words[-2000:]


def test_at_least_eight_submissions_were_judged_and_each_says_why(outcome):
    _, document, _, _ = outcome
    assert len(document["submissions"]) >= 8
    for s in document["submissions"]:
        assert {"name", "expected", "verdict", "status", "rule", "reason", "score_mfu"} <= set(s)
        if s["verdict"] == "accepted":
            assert s["status"] == "scored"
            assert s["score_mfu"] > 0
        else:
            assert s["status"] == "rejected"
            assert s["rule"]
            assert s["reason"]


def test_the_leaderboard_holds_the_honest_alone_best_first(outcome):
    _, document, _, _ = outcome
    honest = {s["name"] for s in document["submissions"] if s["expected"] == "accepted"}
    rows = document["leaderboard"]
    assert {row["name"] for row in rows} == honest
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))


def test_the_chain_holds_the_weights_that_were_asked_and_they_pay_the_leader(outcome):
    _, document, _, _ = outcome
    asked, on_chain = document["weights"]["asked"], document["weights"]["on_chain"]
    assert asked
    assert set(asked) == set(on_chain)
    for uid, share in asked.items():
        assert on_chain[uid] == pytest.approx(share, abs=1e-4)
    leader = str(document["leaderboard"][0]["uid"])
    assert asked[leader] == max(asked.values())


def test_nothing_is_left_behind(outcome):
    temporary = outcome[3]
    assert [p.name for p in temporary.iterdir() if p.name.startswith("crusades")] == []
    assert left_behind(temporary) == []


@pytest.fixture
def running(tmp_path):
    """A demo whose validator is up and whose first miner has committed: (process, folder)."""
    state = tmp_path / "interrupted"
    command = [sys.executable, "-m", "crusades.cli", "demo", "--state-dir", str(state)]
    # Whoever started the tests in the background may ignore Ctrl-C, and children inherit that.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        for line in process.stderr:
            if "committed" in line:
                break
        yield process, state
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_stop_everything_quietly(running, number, code):
    process, state = running
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, err[-2000:]
    assert "Traceback" not in err
    assert out == ""
    assert left_behind(state) == []


def test_a_demo_that_is_killed_takes_its_validator_along(running):
    process, state = running
    assert left_behind(state)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while left_behind(state) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_behind(state) == []
