"""The daemon's stories on the virtual clock: the real store, and stand-ins for chain, hosts and judge.

The first story is the one to read: one submission's whole life. The others are what can go wrong in it.
"""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import trio
from daemon_house import House, eventually, settings
from fakes import FakeJudge, make_commitment, make_source

from crusades import hparams, logs
from crusades.alerts import Alert
from crusades.chain_records import Receipt, Sent
from crusades.chain_rows import HotkeyState, Live, Sightings, rows_of
from crusades.daemon import AT_ONCE, LAST_RESORT, Reins, is_dev, listen_to_signals, load_early, make_context, reload_settings
from crusades.errors import ChainError, ConfigError, DeviceFault, FetchFault, MustNotRestart, RefereeFault, SandboxFault, StoreError
from crusades.intake import FIRST_RETRY, Retries
from crusades.nvml import Device
from crusades.records import Finding, Neuron, Payload, Reason, Stage, Status
from crusades.store import Store
from crusades.validator import leaves
from crusades.watch import LOOK


@pytest.fixture
async def house(tmp_path):
    return House(tmp_path / "state")


def commit(house, text, *, hotkey="5Miner2", uid=2, block=10, url=None, receipt=None, raw=""):
    """A submission on the chain with its file on a host; its id."""
    source = make_source(text, url=url or f"https://files.example/{hotkey}/{block}.py")
    house.serve_file(source)
    row = make_commitment(hotkey, block, source, uid=uid, receipt=receipt)
    house.chain.rows.append(msgspec.structs.replace(row, raw=raw))
    return row.submission_id


async def test_one_submissions_whole_life(house, autojump_clock):
    id_ = commit(house, "# mfu 41.5")
    async with house.running():
        detail = await house.until(id_)
        await eventually(lambda: house.chain.weights)
        await trio.sleep(60)
        weights = await house.context.store.weights()
    assert [step.status.value for step in detail.transitions] == ["revealed", "fetched", "checked", "queued", "running", "scored"]
    assert detail.submission.score_mfu == 41.5
    assert house.chain.weights == {2: 65535}
    assert weights.equal is True
    assert weights.on_chain == {2: 1.0}


async def test_each_is_judged_by_the_rules_of_its_commit_block(house, autojump_clock):
    """New rules while two submissions wait: those get a judge with the old ones, in one go; the next gets the new."""
    def noting(judge, opened):
        open_slot = judge.opener()

        def opener(config):
            opened.append(config.hparams.rules_version(config.profile_name))
            return open_slot(config)

        return opener

    waiting = [commit(house, f"# mfu {40 + n}", hotkey=f"5Miner{n}", uid=n, block=10 + n) for n in (2, 3)]
    house.judge.seconds = 50.0
    async with house.running():
        await house.until(waiting[1], Status.QUEUED)
    old = house.context.board.rules_version
    tiny = house.settings.profiles["tiny"]
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": msgspec.structs.replace(tiny, runs=tiny.runs + 1)})
    house.judge, opened = FakeJudge(), []
    house.parts["open_slot"] = noting(house.judge, opened)
    async with house.running():
        new = house.context.board.rules_version
        await house.until(waiting[1])
        later = commit(house, "# mfu 45", hotkey="5Miner4", uid=4, block=house.chain.block + 1)
        await house.until(later)
        versions = [(await house.context.store.submission(id_)).submission.rules_version for id_ in (*waiting, later)]
    assert old != new
    assert versions == [old, old, new]
    assert opened == [new, old, new]


async def test_rules_that_no_judge_opens_for_give_way_and_condemn_no_slot(house, autojump_clock):
    id_ = commit(house, "# mfu 41")
    house.judge.seconds = 50.0
    async with house.running():
        await house.until(id_, Status.QUEUED, Status.RUNNING)
    old = house.context.board.rules_version
    tiny = house.settings.profiles["tiny"]
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": msgspec.structs.replace(tiny, runs=tiny.runs + 1)})
    house.judge = FakeJudge()
    open_slot = house.judge.opener()

    def opener(config):
        if config.hparams.rules_version(config.profile_name) == old:
            raise ConfigError("its model is not on this machine any more")
        return open_slot(config)

    house.parts["open_slot"] = opener
    async with house.running():
        detail = await house.until(id_)
        assert house.context.seats["cpu"].failures == 0
    assert detail.submission.status is Status.SCORED
    assert detail.submission.attempts == 2


# ------------------------------------------------------------------------------------------------ the chain


async def test_a_sealed_submission_is_shown_and_followed(house, autojump_clock):
    source = make_source("# mfu 40")
    house.serve_file(source)
    sealed = make_commitment("5Miner2", 10, source, uid=2, state=Status.SEALED)
    house.chain.rows.append(sealed)
    async with house.running():
        assert (await house.until(sealed.submission_id, Status.SEALED)).submission.url == ""
        house.chain.rows[:] = [make_commitment("5Miner2", 10, source, uid=2)]
        detail = await house.until(sealed.submission_id)
    assert [step.status.value for step in detail.transitions][:2] == ["sealed", "revealed"]
    assert detail.submission.status is Status.SCORED


async def test_a_commitment_made_during_an_outage_is_not_lost(house, autojump_clock):
    async with house.running():
        await trio.sleep(30)
        house.chain.failing = ChainError("the node is down")
        id_ = commit(house, "# mfu 40")
        await trio.sleep(300)
        assert await house.context.store.submission(id_) is None
        assert "chain" in house.context.board.problems
        house.chain.failing = None
        assert (await house.until(id_)).submission.status is Status.SCORED
        await trio.sleep(30)
        assert "chain" not in house.context.board.problems


async def test_the_state_of_another_chain_is_refused(house, autojump_clock):
    async with house.running():
        await trio.sleep(20)
    house.chain.genesis = "0xother"
    with pytest.raises(BaseExceptionGroup) as caught:
        async with house.running():
            await trio.sleep(60)
    assert [type(e) for e in leaves(caught.value)] == [StoreError]


# ------------------------------------------------------------------------------------------------ fetching and checking


async def test_a_host_that_is_down_is_asked_again_and_is_no_cheat(house, autojump_clock):
    id_ = commit(house, "# mfu 40")
    (url, source), = house.files.served.items()
    house.files.served[url] = FetchFault("files.example answered 503")
    async with house.running():
        await trio.sleep(FIRST_RETRY * 5)
        assert (await house.until(id_, Status.REVEALED)).submission.reason.code == 3001
        house.files.served[url] = source
        detail = await house.until(id_)
    assert detail.submission.status is Status.SCORED
    gaps = [b - a for (_, a), (_, b) in zip(house.files.asked, house.files.asked[1:], strict=False)]
    assert gaps == pytest.approx(sorted(gaps), abs=1.0)  # back-off


async def test_after_the_grace_window_it_is_final_also_across_a_restart(house, autojump_clock):
    house.settings = msgspec.structs.replace(
        house.settings, fetch=msgspec.structs.replace(house.settings.fetch, grace_hours=0.5))
    id_ = commit(house, "# mfu 40")
    house.files.served = dict.fromkeys(house.files.served, FetchFault("no route to files.example"))
    async with house.running():
        await trio.sleep(600)
        assert (await house.until(id_, Status.REVEALED)).submission.status is Status.REVEALED
        reason = (await house.until(id_, patience=7200)).submission.reason
    assert reason.code == 1106
    assert "no route" in reason.message


async def test_a_wrong_file_is_rejected_with_the_fetchers_reason(house, autojump_clock):
    id_ = commit(house, "# mfu 40")
    house.files.served = dict.fromkeys(house.files.served, Reason(code=1104, stage=Stage.FETCH, message="another file"))
    async with house.running():
        assert (await house.until(id_)).submission.reason.code == 1104
    assert house.judge.evaluated == []


async def test_one_slow_host_does_not_hold_up_the_others(house, autojump_clock):
    slow, quick = commit(house, "# mfu 40"), commit(house, "# mfu 41", hotkey="5Miner3", uid=3, block=11)
    real = house.files.fetch

    async def fetch(payload, settings):
        if "5Miner2" in payload.url:
            await trio.sleep(3000)
        return await real(payload, settings)

    house.parts["fetch"] = fetch
    async with house.running():
        assert (await house.until(quick, patience=600)).submission.status is Status.SCORED
        assert (await house.until(slow, Status.REVEALED)).submission.status is Status.REVEALED


async def test_two_fetchers_never_take_the_same_submission(house, autojump_clock, monkeypatch):
    """A list that was read before another fetcher finished is old when it arrives (found by the soak benchmark)."""
    real = Store.in_state

    async def slow(store, *statuses):
        rows = await real(store, *statuses)
        await trio.sleep(0.3 if statuses == (Status.REVEALED,) else 0)
        return rows

    fetch = house.files.fetch

    async def uneven(payload, settings):
        await trio.sleep(0.1 * int(payload.url[-4]))
        return await fetch(payload, settings)

    monkeypatch.setattr(Store, "in_state", slow)
    house.parts["fetch"] = uneven
    ids = [commit(house, f"# mfu 4{n}", hotkey=f"5Miner{n}", uid=n, url=f"https://files.example/{n}.py") for n in range(2, 8)]
    async with house.running():
        for id_ in ids:
            assert (await house.until(id_)).submission.status is Status.SCORED
    assert len(house.files.asked) == len(ids)


async def test_a_broken_rule_is_final_before_anything_runs(house, autojump_clock):
    id_ = commit(house, "import socket")
    house.findings = [Finding(rule="R101", line=1, column=1, message="socket is not allowed", why="w", instead="i")]
    async with house.running():
        detail = await house.until(id_)
    assert (detail.submission.status, detail.submission.reason.rule, house.judge.evaluated) == (Status.REJECTED, "R101", [])


class Scanner:
    """A rule check whose child process fails when it is told to."""

    def __init__(self, fails):
        self.fails, self.asked = fails, 0

    def __call__(self, content):
        self.asked += 1
        if self.fails(content, self.asked):
            raise SandboxFault("the rule check could not be run: no memory")
        return []


async def test_a_rule_check_that_could_not_be_run_is_run_again(house, autojump_clock):
    house.parts["scan"] = Scanner(lambda content, asked: asked <= 2)
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        detail = await house.until(id_)
        assert "checker" not in ctx.board.problems
    assert detail.submission.status is Status.SCORED


async def test_a_file_that_cannot_be_checked_here_is_our_fault_and_holds_nobody_up(house, autojump_clock):
    house.parts["scan"] = Scanner(lambda content, asked: b"# heavy" in content)
    heavy = commit(house, "# heavy", block=10, url="https://a.example/x")
    other = commit(house, "# mfu 40", hotkey="5Miner3", uid=3, block=12, url="https://b.example/x")
    async with house.running():
        assert (await house.until(other)).submission.status is Status.SCORED
        detail = await house.until(heavy)
    assert (detail.submission.status, detail.submission.reason.code) == (Status.FAULTED, 2001)


async def test_while_nothing_can_be_checked_everybody_waits(house, autojump_clock):
    house.parts["scan"] = scanner = Scanner(lambda content, asked: True)
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        await trio.sleep(3600)
        assert (await ctx.store.submission(id_)).submission.status is Status.FETCHED
        assert "no memory" in ctx.board.problems["checker"]
        scanner.fails = lambda content, asked: False
        assert (await house.until(id_)).submission.status is Status.SCORED


async def test_the_daemon_parses_in_a_process_of_its_own(monkeypatch):
    """Hostile text never meets the daemon's own parser."""
    from crusades import daemon, rules, rules_apart, rules_scan

    for module, name in ((rules_scan, "scan"), (rules_apart, "scan"), (rules, "scan"), (rules_apart, "fingerprint"), (rules, "fingerprint")):
        monkeypatch.setattr(module, name, None)
    source = b"import os # %d" % os.getpid()
    assert "R101" in {finding.rule for finding in daemon._scan(source)}
    assert len(daemon._fingerprint(source)) == 64


# ------------------------------------------------------------------------------------------------ copies


async def test_the_later_commit_of_the_same_file_is_the_copy(house, autojump_clock):
    original = commit(house, "# mfu 40", block=10, url="https://a.example/x")
    copy = commit(house, "# mfu 40", hotkey="5Miner3", uid=3, block=12, url="https://b.example/x")
    async with house.running():
        assert (await house.until(original)).submission.status is Status.SCORED
        reason = (await house.until(copy)).submission.reason
    assert (reason.code, reason.measured) == (1005, original)
    assert "block 10" in reason.message


async def test_a_kill_between_a_verdict_and_the_look_at_its_copies_leaves_no_copy_its_score(house, autojump_clock, monkeypatch):
    """The original was committed earlier and revealed while its copy ran."""
    copy = commit(house, "# mfu 40", hotkey="5Miner3", uid=3, block=12, url="https://b.example/x")
    house.judge.seconds = 20.0

    async def killed(*_):
        """As far as the store knows."""

    with monkeypatch.context() as patch:
        patch.setattr("crusades.judging.settle_copies", killed)
        async with house.running():
            await house.until(copy, Status.RUNNING)
            original = commit(house, "# mfu 40", block=10, url="https://a.example/x")
            await house.until(original, Status.QUEUED)
            assert (await house.until(copy)).submission.status is Status.SCORED
    async with house.running():
        reason = (await house.until(copy, Status.REJECTED)).submission.reason
        assert (reason.code, reason.measured) == (1005, original)


async def test_copies_that_wait_for_the_same_look_as_their_original_do_no_harm(house, autojump_clock, monkeypatch):
    """All of them are in the checker's list when the first is found to be the original (found by hand: it ended the daemon)."""
    real, held = Store.in_state, trio.Event()

    async def late(store, *statuses):
        if statuses == (Status.FETCHED,):
            await held.wait()
        return await real(store, *statuses)

    monkeypatch.setattr(Store, "in_state", late)
    ids = [commit(house, "# mfu 40", hotkey=f"5Miner{n}", uid=n, block=10 + n, url=f"https://files.example/{n}") for n in (2, 3, 4)]
    async with house.running():
        for id_ in ids:
            await house.until(id_, Status.FETCHED)
        held.set()
        found = [(await house.until(id_)).submission for id_ in ids]
    assert [row.status for row in found] == [Status.SCORED, Status.REJECTED, Status.REJECTED]
    assert {row.reason.measured for row in found[1:]} == {ids[0]}


@pytest.mark.parametrize("stage", ["fetch", "check"])
async def test_a_miner_deregistered_while_we_work_on_its_file_does_no_harm(house, autojump_clock, stage):
    id_ = commit(house, "# mfu 40")
    real = house.files.fetch

    async def deregister():
        house.chain.rows[:] = [msgspec.structs.replace(row, uid=None, state=Status.REJECTED, reason=GONE) for row in house.chain.rows]
        await trio.sleep(5 * house.chain.block_seconds)

    async def slow_fetch(*args):
        await deregister()
        return await real(*args)

    def slow_scan(content):
        trio.from_thread.run(deregister)
        return []

    house.parts |= {"fetch": slow_fetch} if stage == "fetch" else {"scan": slow_scan}
    async with house.running():
        assert (await house.until(id_)).submission.reason.code == 1006
        await trio.sleep(20 * house.chain.block_seconds)
        assert house.judge.evaluated == []


GONE = Reason(code=1006, stage=Stage.CHAIN, message="deregistered")


async def test_an_original_revealed_late_takes_the_score_back_from_its_copy(house, autojump_clock):
    copy = commit(house, "# mfu 40\n# same program", hotkey="5Miner3", uid=3, block=12)
    async with house.running():
        assert (await house.until(copy)).submission.status is Status.SCORED
        original = commit(house, "# mfu 40.0\n# same program", block=10)
        assert (await house.until(original)).submission.status is Status.SCORED
        assert (await house.until(copy, Status.REJECTED)).submission.reason.measured == original


async def test_nobody_is_accused_when_the_direction_is_unknown(house, autojump_clock):
    first = commit(house, "# mfu 40", block=10, url="https://a.example/x")
    second = commit(house, "# mfu 40", hotkey="5Miner3", uid=3, block=10, url="https://b.example/x")
    async with house.running():
        for id_ in (first, second):
            assert (await house.until(id_)).submission.status is Status.SCORED


# ------------------------------------------------------------------------------------------------ judging


async def test_order_of_service_is_commit_block_then_uid(house, autojump_clock):
    late, b, a = commit(house, "# mfu 1", uid=2, block=11), commit(house, "# mfu 2", hotkey="5Miner7", uid=7), commit(house, "# mfu 3", hotkey="5Miner3", uid=3)
    house.judge.seconds = 100.0  # all three are queued while the slot warms up
    async with house.running():
        for id_ in (late, b, a):
            await house.until(id_)
    assert [id_ for id_, _ in house.judge.evaluated] == [a, b, late]


async def test_a_rejection_is_the_judges_verdict(house, autojump_clock):
    id_ = commit(house, "# reject")
    async with house.running():
        detail = await house.until(id_)
        await trio.sleep(120)
    assert (detail.submission.status, detail.submission.reason.rule, detail.verdict.measured) == (Status.REJECTED, "gradient_error", 0.9)
    assert house.chain.sent == []


@pytest.mark.parametrize("kind", ["sandbox", "referee", "environment", "device"])
async def test_a_fault_of_ours_is_tried_again_and_costs_the_miner_nothing(house, kind, autojump_clock):
    id_ = commit(house, f"# mfu 40\n# fault {kind}")
    async with house.running():
        detail = await house.until(id_)
    assert detail.submission.status is Status.SCORED
    assert detail.submission.attempts == 2
    codes = [step.reason.code for step in detail.transitions if step.reason]
    assert codes == [{"sandbox": 2001, "referee": 2002, "device": 2003, "environment": 2006}[kind]]


async def test_faults_without_end_make_it_faulted_and_never_rejected(house, autojump_clock):
    id_ = commit(house, "# mfu 40\n# fault referee\n# times 99")
    other = commit(house, "# mfu 41", hotkey="5Miner3", uid=3, block=11)
    async with house.running():
        detail = await house.until(id_)
        assert (await house.until(other)).submission.status is Status.SCORED
    assert (detail.submission.status, detail.submission.attempts) == (Status.FAULTED, 3)


async def test_a_slot_whose_control_run_fails_leaves_service_and_returns(house, autojump_clock):
    id_ = commit(house, "# mfu 40\n# fault device")
    house.parts["control"] = make_source("baseline")
    house.judge.control_passes = False
    async with house.running() as ctx:
        await eventually(lambda: "cpu" in ctx.board.slots and ctx.board.slots["cpu"].state == "out of service")
        assert "baseline" in ctx.board.problems["slot cpu"]
        assert (await house.until(id_, Status.QUEUED)).submission.reason.code == 2003
        house.judge.control_passes = True
        assert (await house.until(id_)).submission.status is Status.SCORED
        assert "slot cpu" not in ctx.board.problems


async def test_a_hostile_submission_cannot_take_a_slot_out_of_service(house, autojump_clock):
    commit(house, "# mfu 40\n# fault device\n# times 99")
    good = commit(house, "# mfu 41", hotkey="5Miner3", uid=3, block=11)
    house.parts["control"] = make_source("baseline")
    async with house.running() as ctx:
        await house.until(good)
        events = await ctx.store.events_since(0, 10_000)
    assert "out of service" not in {event.data["state"] for event in events if event.kind == "slot"}


async def test_breaking_every_card_it_gets_is_the_submissions_own_failure(house, autojump_clock):
    id_ = commit(house, "# mfu 40\n# fault device\n# times 99")
    two_cards(house)
    async with house.running():
        detail = await house.until(id_)
    assert (detail.submission.status, detail.submission.reason.code, detail.submission.attempts) == (Status.REJECTED, 1308, 2)


def two_cards(house, present=("0", "1")):
    """A machine with cards and a profile that wants them; a judge per card."""
    profile = msgspec.structs.replace(house.settings.profile("tiny"), device="cuda")
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": profile})
    judges = {}

    def open_slot(config):
        judge = judges.setdefault(config.name, FakeJudge(name=config.name, seconds=house.judge.seconds, faults_left=house.judge.faults_left, evaluated=house.judge.evaluated))
        return judge.opener()(config)

    house.cards = list(present)
    house.parts |= {"open_slot": open_slot, "control": make_source("baseline"),
                    "devices": lambda: tuple(Device(index=int(n), minor=int(n), name="Fake", uuid=f"GPU-{n}", memory_bytes=1) for n in house.cards)}


async def test_slots_work_side_by_side(house, autojump_clock):
    two_cards(house)
    ids = [commit(house, f"# mfu 4{n}", hotkey=f"5Miner{n}", uid=n) for n in (2, 3)]
    async with house.running() as ctx:
        await eventually(lambda: sum(view.state == "running" for view in ctx.board.slots.values()) == 2)
        for id_ in ids:
            assert (await house.until(id_)).submission.status is Status.SCORED


async def test_after_a_restart_finished_runs_are_gone_on_with_on_the_slot_that_made_them(house, autojump_clock):
    two_cards(house, present=["1"])
    id_ = commit(house, "# mfu 40")
    house.judge.seconds = 5.0
    async with house.running():
        await house.until(id_, Status.RUNNING)
        await trio.sleep(12.0)  # two runs have ended, the third is under way
    house.cards.insert(0, "0")
    async with house.running():
        detail = await house.until(id_)
    assert [kept for who, kept in house.judge.evaluated if who == id_] == [0, 2]
    assert [step.note for step in detail.transitions if step.status is Status.RUNNING] == ["on cuda:1", "on cuda:1"]


async def test_a_card_that_goes_and_comes_back(house, autojump_clock):
    two_cards(house, present=["0"])
    async with house.running() as ctx:
        await trio.sleep(30)
        hung = commit(house, "# hang")
        await house.until(hung, Status.RUNNING)
        house.cards.clear()
        reason = (await house.until(hung, Status.QUEUED)).submission.reason
        assert reason.code == 2005
        assert "slot cuda:0 was lost" in reason.message
        assert ctx.board.slots == {}
        assert "devices" in ctx.board.problems
        house.cards.append("1")
        await house.until(hung, Status.RUNNING)
        assert list(ctx.board.slots) == ["cuda:1"]
        assert "devices" not in ctx.board.problems


def in_service(ctx, slot):
    return ctx.metrics.registry.get_sample_value("crusades_slot_in_service", {"slot": slot})


async def test_one_card_of_several_that_is_lost_is_seen_and_told(house, autojump_clock, caplog):
    two_cards(house, present=["0", "1"])
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        house.cards.remove("1")
        await trio.sleep(120)
        assert list(ctx.board.slots) == ["cuda:0"]
        assert "is gone" in ctx.board.ready["slot cuda:1"]
        assert in_service(ctx, "cuda:1") == 0
        assert "alert: slot cuda:1 is out of service: its device is gone" in caplog.text
        house.cards.append("1")
        await eventually(lambda: ctx.board.is_ready, patience=120)
        assert ctx.board.problems == {}
        assert in_service(ctx, "cuda:1") == 1


async def test_a_card_that_is_missing_after_a_reboot_is_missed_for_a_week(house, autojump_clock):
    two_cards(house, present=["0", "1"])
    async with house.running() as ctx:
        await eventually(lambda: len(ctx.board.slots) == 2)
    house.cards.remove("1")
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.slots)
        await trio.sleep(30)
        assert "is gone" in ctx.board.problems["slot cuda:1"]
        real = ctx.now
        ctx.now = lambda: real() + 8 * 86_400
        await eventually(lambda: ctx.board.is_ready, patience=60)
        assert in_service(ctx, "cuda:1") is None


async def test_a_slot_that_was_late_and_is_gone_is_not_late_any_more(house, autojump_clock):
    two_cards(house, present=["0", "1"])
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        ctx.health.progress("slot cuda:1", "hanging", deadline=1.0)
        await eventually(lambda: "late slot cuda:1" in ctx.board.problems)
        house.cards.remove("1")
        await trio.sleep(60)
        assert "late slot cuda:1" not in ctx.board.problems
        assert ctx.metrics.registry.get_sample_value("crusades_subsystem_late", {"subsystem": "slot cuda:1"}) is None


async def test_a_machine_without_the_card_its_profile_needs_says_so_and_runs_nothing(house, autojump_clock):
    two_cards(house, present=[])
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        await house.until(id_, Status.QUEUED)
        assert "nvidia-smi" in ctx.board.problems["devices"]
        assert not ctx.board.is_ready


async def test_a_judge_that_cannot_be_opened_is_tried_again(house, autojump_clock):
    house.judge.broken = [RefereeFault("the model does not load")] * 2
    id_ = commit(house, "# mfu 40")
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED
    assert house.judge.opened == 3


# ------------------------------------------------------------------------------------------------ stopping and starting


async def test_a_staged_stop_ends_the_run_keeps_it_and_goes_on_after_the_restart(house, autojump_clock):
    id_ = commit(house, "# mfu 40")
    house.judge.seconds = 5.0
    async with house.running() as ctx:
        await house.until(id_, Status.RUNNING)
        await trio.sleep(12.0)  # two runs have ended, the third is under way
    async with house.running() as ctx:
        assert len([run for run in await ctx.store.runs(id_) if run.scored]) == 2  # the run that was under way was ended and kept
        detail = await house.until(id_)
    assert detail.submission.status is Status.SCORED
    assert [kept for _, kept in house.judge.evaluated] == [0, 2]
    assert [run.index for run in detail.verdict.runs if run.scored] == [1, 2, 3]
    assert [step.reason.code for step in detail.transitions if step.reason] == [2005]


async def test_an_evaluation_that_does_not_end_gets_the_grace_and_no_more(tmp_path, autojump_clock):
    house = House(tmp_path / "state", shutdown_grace=20.0)
    id_ = commit(house, "# hang")
    async with house.running():
        await house.until(id_, Status.RUNNING)
        asked = trio.current_time()
    assert trio.current_time() - asked == pytest.approx(20.0, abs=2.0)
    async with house.running():
        assert (await house.until(id_, Status.RUNNING)).submission.attempts == 2


async def test_an_evaluation_of_which_nothing_would_be_kept_is_not_waited_for(tmp_path, autojump_clock):
    house = House(tmp_path / "state", shutdown_grace=20.0)
    tiny = house.settings.profiles["tiny"]
    anchored = msgspec.structs.replace(tiny, audit=msgspec.structs.replace(tiny.audit, anchored_runs=4))
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": anchored})
    id_ = commit(house, "# hang")
    async with house.running():
        await house.until(id_, Status.RUNNING)
        asked = trio.current_time()
    assert trio.current_time() - asked < 2.0
    async with house.running() as ctx:
        detail = await house.until(id_, Status.RUNNING)
        assert detail.submission.attempts == 2
        assert [step.reason.code for step in (await ctx.store.submission(id_)).transitions if step.reason] == [2005]


async def test_a_fault_while_we_stop_is_written_and_holds_nobody_up(tmp_path, autojump_clock):
    """No control run then, and no pause before a slot that nobody will open again."""
    house = House(tmp_path / "state", shutdown_grace=100.0)
    house.parts["control"] = make_source("baseline")
    id_ = commit(house, "# mfu 40\n# fault referee")
    house.judge.seconds = 5.0
    async with house.running() as ctx:
        await house.until(id_, Status.RUNNING)
        await trio.sleep(1.0)
        begun = trio.current_time()
    assert trio.current_time() - begun < 8.0
    assert [id_ for id_, _ in house.judge.evaluated] == [id_]
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.status is Status.SCORED
        assert [step.reason.code for step in (await ctx.store.submission(id_)).transitions if step.reason] == [2002]


async def test_one_fault_at_opening_is_no_proof_that_rules_of_another_time_cannot_be_had(house, autojump_clock):
    id_ = commit(house, "# mfu 41")
    house.judge.seconds = 50.0
    async with house.running():
        await house.until(id_, Status.QUEUED, Status.RUNNING)
    old = house.context.board.rules_version
    tiny = house.settings.profiles["tiny"]
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": msgspec.structs.replace(tiny, runs=tiny.runs + 1)})
    house.judge = FakeJudge()
    open_slot, faults, opened = house.judge.opener(), [DeviceFault("the card's memory is not free yet")], []

    def opener(config):
        version = config.hparams.rules_version(config.profile_name)
        opened.append(version == old)
        if version == old and faults:
            raise faults.pop()
        return open_slot(config)

    house.parts["open_slot"] = opener
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.rules_version == old
        assert ctx.rulebook.unusable == set()
    assert opened.count(True) == 2


async def test_our_own_downtime_does_not_count_against_a_host(house, autojump_clock):
    id_ = commit(house, "# mfu 40")
    ((url, source),) = house.files.served.items()
    house.files.served[url] = FetchFault("503")
    async with house.running() as ctx:
        await house.until(id_, Status.REVEALED)
        await trio.sleep(5.0)
        base = ctx.now()
    async with house.running() as ctx:
        began = trio.current_time()
        ctx.now = lambda: base + 7 * 3600 + trio.current_time() - began
        await trio.sleep(3.0)
        house.files.served[url] = source
        assert (await house.until(id_)).submission.status is Status.SCORED


async def test_while_we_are_cut_off_ourselves_no_host_is_counted_down(house, autojump_clock):
    house.settings = msgspec.structs.replace(house.settings, fetch=msgspec.structs.replace(house.settings.fetch, grace_hours=0.5))
    first = commit(house, "# mfu 40")
    async with house.running() as ctx:
        await house.until(first)
        id_ = commit(house, "# mfu 41", hotkey="5Miner3", uid=3, block=ctx.board.block + 1)
        url = house.chain.rows[-1].payload.url
        source, house.files.served[url] = house.files.served[url], FetchFault("the name cannot be resolved")
        await house.until(id_, Status.REVEALED)
        house.chain.failing, house.chain.problem = ChainError("down"), "down"
        await trio.sleep(3600)
        assert (await ctx.store.submission(id_)).submission.status is Status.REVEALED
        house.chain.failing, house.chain.problem, house.files.served[url] = None, "", source
        assert (await house.until(id_)).submission.status is Status.SCORED


@pytest.mark.parametrize("attempt", range(3))
async def test_whoever_was_down_judges_intervals_as_who_was_not(house, autojump_clock, attempt):
    """Of three at once the second comes too soon after the first, and so the third does not come too soon after it."""
    house.settings = msgspec.structs.replace(house.settings, chain=msgspec.structs.replace(house.settings.chain, min_commit_interval=50))
    house.chain.block = 200
    ids = [commit(house, f"# mfu 4{n}", block=block) for n, block in enumerate((10, 40, 70))]
    async with house.running():
        found = [(await house.until(id_)).submission for id_ in ids]
    assert [row.status for row in found] == [Status.SCORED, Status.REJECTED, Status.SCORED]


@pytest.mark.parametrize("attempt", range(3))
async def test_a_receipt_that_an_earlier_submission_gives_back_pays_for_the_later_one(house, autojump_clock, attempt):
    house.settings = msgspec.structs.replace(
        house.settings, chain=msgspec.structs.replace(house.settings.chain, fee_rao=2 * 10**9, fee_address="5Treasury"))
    house.chain.neuron_list[2] = Neuron(uid=2, hotkey="5Miner2", coldkey="5Cold2")
    house.chain.receipts["8-1"] = Receipt(id="8-1", block=8, signer="5Cold2", destination="5Treasury", amount_rao=2 * 10**9, success=True)
    house.chain.block = 60
    first, second = (commit(house, f"# mfu 4{n}", block=block, receipt="8-1") for n, block in enumerate((10, 40)))
    house.files.served["https://files.example/5Miner2/10.py"] = Reason(code=1102, stage=Stage.FETCH, message="404")
    async with house.running():
        found = [(await house.until(id_)).submission for id_ in (first, second)]
    assert [(row.status, row.reason and row.reason.code) for row in found] == [(Status.REJECTED, 1102), (Status.SCORED, None)]


async def test_a_receipt_that_nobody_can_look_up_holds_up_a_later_submission_for_a_while_and_not_for_ever(house, autojump_clock):
    house.settings = msgspec.structs.replace(
        house.settings, chain=msgspec.structs.replace(house.settings.chain, fee_rao=2 * 10**9, fee_address="5Treasury"),
        fetch=msgspec.structs.replace(house.settings.fetch, grace_hours=0.5))
    house.chain.neuron_list[2] = Neuron(uid=2, hotkey="5Miner2", coldkey="5Cold2")
    house.chain.receipts["8-1"] = ChainError("the block is gone from every archive")
    house.chain.receipts["9-1"] = Receipt(id="9-1", block=9, signer="5Cold2", destination="5Treasury", amount_rao=2 * 10**9, success=True)
    house.chain.block = 60
    unknown, paid = (commit(house, f"# mfu 4{n}", block=block, receipt=receipt) for n, (block, receipt) in enumerate(((10, "8-1"), (40, "9-1"))))
    async with house.running() as ctx:
        await trio.sleep(house.settings.fetch.grace_hours * 3600 / 2)
        assert (await ctx.store.submission(paid)).submission.status is Status.REVEALED
        await trio.sleep(house.settings.fetch.grace_hours * 3600)
        assert (await ctx.store.submission(paid)).submission.status is Status.SCORED
        assert (await ctx.store.submission(unknown)).submission.status is Status.REVEALED


async def test_a_miner_who_registers_anew_is_no_copy_of_himself(house, autojump_clock):
    first = commit(house, "# mfu 40")
    async with house.running() as ctx:
        await house.until(first)
        await eventually(lambda: house.chain.weights == {2: 65535})
        house.chain.neuron_list[2] = Neuron(uid=2, hotkey="5Miner2", registered_block=house.chain.block)
        await trio.sleep(60)
        again = commit(house, "# mfu 40", block=house.chain.block + 1)
        assert (await house.until(again)).submission.status is Status.SCORED
        assert ctx.board.block is not None
    async with house.running() as ctx:  # the look at the last verdicts after a start
        await trio.sleep(60)
        assert (await ctx.store.submission(again)).submission.status is Status.SCORED


async def test_what_the_chain_rejected_before_it_was_judged_may_come_again(house, autojump_clock):
    house.chain.block = 60
    blocker = commit(house, "# hang", hotkey="5Miner5", uid=5, block=9)
    first = commit(house, "# mfu 40", block=10)
    async with house.running():
        await house.until(blocker, Status.RUNNING)
        await house.until(first, Status.QUEUED)
        gone = Reason(code=1006, stage=Stage.CHAIN, message="deregistered")
        house.chain.rows[-1] = msgspec.structs.replace(house.chain.rows[-1], uid=None, state=Status.REJECTED, reason=gone)
        assert (await house.until(first)).submission.reason.code == 1006
        again = commit(house, "# mfu 40", block=house.chain.block + 1)
        await house.until(again, Status.QUEUED)


def other_content(house, text="# mfu 50"):
    """Another branch of the chain wins: the newest row holds another file in the same block."""
    source = make_source(text, url="https://files.example/other.py")
    house.serve_file(source)
    house.chain.rows[-1] = msgspec.structs.replace(house.chain.rows[-1], payload=Payload(sha256=source.sha256, url=source.url), raw="another")
    return source


async def test_a_row_that_starts_over_while_it_runs_ends_no_daemon(house, autojump_clock):
    house.chain.lag = 10
    id_ = commit(house, "# mfu 40", raw="one")
    house.judge.seconds = 30.0
    async with house.running():
        await house.until(id_, Status.RUNNING)
        other_content(house)
        assert (await house.until(id_)).submission.score_mfu == 50.0


async def test_a_download_of_what_another_branch_held_is_not_judged(house, autojump_clock):
    house.chain.lag = 10
    id_, fetch = commit(house, "# mfu 40", raw="one"), house.files.fetch

    async def slow(payload, settings):
        if "other" not in payload.url:
            other_content(house)
            await trio.sleep(25.0)
        return await fetch(payload, settings)

    house.parts["fetch"] = slow
    async with house.running() as ctx:
        detail = await house.until(id_)
        assert (await ctx.store.payload(id_)).sha256 == (await ctx.store.source(id_)).sha256
        assert detail.submission.score_mfu == 50.0


async def test_the_end_of_a_seal_is_not_lost_with_a_read_that_fails(house, autojump_clock):
    seen, broken = Sightings(), []

    async def commitments(block_hash=None, *, final=False, hotkey=None):
        number = int(block_hash[2:])
        if broken and not final:
            raise broken.pop()
        at = 10 if number < 40 else 40
        state = HotkeyState("5Miner2", uid=2, live=Live(block=at, rounds=(9,)), last_commitment=at)
        rows = rows_of(1, state, provisional=not final)
        return [*rows, *seen.gone(rows, {"5Miner2": state}, block=number, final=final)]

    house.chain.commitments, house.chain.block = commitments, 20
    async with house.running() as ctx:
        await eventually(lambda: house.chain.block - house.chain.lag == 39)
        await trio.sleep(6.0)
        broken.append(ChainError("the connection broke"))  # at the head at which block 40 becomes final
        await trio.sleep(50 * 12.0)
        found = {row.commit_block: row.reason and row.reason.code for row in (await ctx.store.submissions()).items}
    assert found == {10: 1003, 40: None}


async def test_a_vector_that_never_arrived_is_not_on_its_way(house, autojump_clock):
    """An older one of ours is sealed and waits to be opened: that is not this one."""
    house.settings = msgspec.structs.replace(house.settings, chain=msgspec.structs.replace(house.settings.chain, weights_interval=10))
    house.chain.tempo = 360
    commit(house, "# mfu 40")
    async with house.running():
        await eventually(lambda: house.chain.weights == {2: 65535})
        house.chain.pending = 1
        send, resolve, tries = house.chain.set_weights, house.chain.resolve, []

        async def fails(plan, *, signed=None):
            tries.append(house.chain.block)
            await signed(Sent(hash="0xlost", what="weights", first=house.chain.block - 1, last=house.chain.block + 14))
            house.chain.set_weights = send
            raise ChainError("the pool refused it")

        async def resolved(sent, *, final=False):
            return None if sent.hash == "0xlost" else await resolve(sent, final=final)

        house.chain.set_weights, house.chain.resolve = fails, resolved
        await trio.sleep(12 * 12.0)
        commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=house.chain.block)
        await eventually(lambda: tries)
        count = len(house.chain.sent)
        await eventually(lambda: len(house.chain.sent) > count, 40 * 12.0)


async def test_a_sealed_vector_that_is_wanted_no_more_gets_a_successor(house, autojump_clock):
    """The one that is wanted again is on chain still, and would be replaced when the sealed one is opened."""
    house.chain.tempo = 360
    commit(house, "# mfu 40")
    async with house.running():
        await eventually(lambda: house.chain.weights == {2: 65535})
        house.chain.applies, house.chain.pending = False, 1
        commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=house.chain.block)
        await eventually(lambda: house.chain.sent[-1] == {3: 65535}, 7200)
        house.chain.neuron_list.pop(3)
        await eventually(lambda: house.chain.sent[-1] == {2: 65535}, 30 * 12.0)


async def test_an_idle_daemon_stops_at_once(house, autojump_clock):
    async with house.running():
        await trio.sleep(60)
        asked = trio.current_time()
    assert trio.current_time() - asked < 2.0


# ------------------------------------------------------------------------------------------------ weights


async def weights_set(house, vector, patience=3600):
    await eventually(lambda: house.chain.weights == vector, patience)


async def test_a_new_leader_gets_the_weights(house, autojump_clock):
    commit(house, "# mfu 40")
    async with house.running():
        await weights_set(house, {2: 65535})
        commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=40)
        await weights_set(house, {3: 65535})


async def test_a_fresh_state_judges_what_was_there_before_it_pays_anybody(house, autojump_clock):
    house.judge.seconds = 60.0
    house.chain.block = 40
    commit(house, "# mfu 40")
    commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=12)
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.weights_held.startswith("catching up: not judged yet of what was there at block 38: 1;"))
        assert "weights" not in ctx.board.problems
        await weights_set(house, {3: 65535})
    assert house.chain.sent[0] == {3: 65535}


async def test_a_host_that_is_down_holds_a_fresh_state_no_longer_than_its_grace(house, autojump_clock):
    house.chain.block = 40
    commit(house, "# mfu 40")
    lost = commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=12)
    house.files.served[house.chain.rows[-1].payload.url] = FetchFault("down")
    house.settings = msgspec.structs.replace(house.settings, fetch=msgspec.structs.replace(house.settings.fetch, grace_hours=0.2))
    async with house.running():
        await weights_set(house, {2: 65535}, patience=3600)
        assert (await house.until(lost)).submission.status is Status.REJECTED


async def test_what_is_committed_later_holds_up_nothing(house, autojump_clock):
    house.chain.block = 40
    commit(house, "# mfu 40")
    async with house.running():
        await trio.sleep(5)
        commit(house, "# hang", hotkey="5Miner3", uid=3, block=41)
        await weights_set(house, {2: 65535})


async def test_a_person_may_send_before_everything_is_judged(house, autojump_clock):
    house.chain.block = 40
    commit(house, "# mfu 40")
    commit(house, "# hang", hotkey="5Miner3", uid=3, block=12)
    house.extra["accept_empty_state"] = True
    async with house.running():
        await weights_set(house, {2: 65535})


async def test_weights_are_refreshed_each_tempo_and_not_each_block(house, autojump_clock):
    commit(house, "# mfu 40")
    async with house.running():
        await weights_set(house, {2: 65535})
        begun = house.chain.block
        await trio.sleep(100 * house.chain.block_seconds)
        blocks = house.chain.block - begun
    assert len(house.chain.sent) == pytest.approx(blocks / house.chain.tempo, abs=1.5)


async def test_an_unconfirmed_leader_gets_nothing(house, autojump_clock):
    house.chain.lag = 10_000
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.provisional
        await trio.sleep(600)
        assert ctx.board.weights_held
    assert house.chain.sent == []


async def test_a_lost_disk_holds_weights_until_a_person_accepts_it(house, autojump_clock):
    house.chain.weights, house.chain.last_update = {5: 65535}, 7
    commit(house, "# mfu 40")
    async with house.running() as ctx:
        await trio.sleep(600)
        assert "--accept-empty-state" in ctx.board.problems["weights"]
    assert house.chain.sent == []
    house.extra["accept_empty_state"] = True
    async with house.running():
        await weights_set(house, {2: 65535})


async def test_another_process_with_our_hotkey_stops_us_for_good(house, autojump_clock):
    commit(house, "# mfu 40")
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the story is the point
        async with house.running():
            await weights_set(house, {2: 65535})
            await trio.sleep(30 * house.chain.block_seconds)
            house.chain.last_update = house.chain.block + 100  # beyond every window of ours
            house.chain.block += 101
            await trio.sleep(600)
    assert [type(e) for e in leaves(caught.value)] == [MustNotRestart]


async def test_a_process_that_sends_before_ours_is_final_is_noticed(house, autojump_clock):
    house.chain.lag = 5
    commit(house, "# mfu 40")
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the story is the point
        async with house.running():
            await weights_set(house, {2: 65535})
            house.chain.last_update += 2  # within the blocks in which ours may be
            await trio.sleep(600)
    assert [type(e) for e in leaves(caught.value)] == [MustNotRestart]


@pytest.fixture
async def twin_weights(house, autojump_clock):
    """We have sent, stopped, and somebody else has sent since."""
    commit(house, "# mfu 40")
    async with house.running():
        await weights_set(house, {2: 65535})
    house.chain.block += 100
    house.chain.weights, house.chain.last_update = {5: 65535}, house.chain.block


async def test_a_restored_backup_stays_down_and_names_the_way_out(house, twin_weights, autojump_clock):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with house.running():
            await trio.sleep(600)
    (error,) = leaves(caught.value)
    assert type(error) is MustNotRestart
    assert "restored backup" in str(error)
    assert "--accept-foreign-weights" in str(error)


async def test_once_the_twin_is_stopped_we_start_again_and_need_no_flag_the_next_time(house, twin_weights, autojump_clock):
    house.chain.refused = ("not now",)
    house.extra["accept_foreign_weights"] = True
    async with house.running():
        await trio.sleep(60)
    house.extra.clear()
    house.chain.refused = ()
    async with house.running():
        await weights_set(house, {2: 65535})


async def test_an_accepted_empty_state_stays_accepted_when_the_first_weights_never_arrive(house, autojump_clock):
    house.chain.weights, house.chain.last_update = {5: 65535}, 7
    commit(house, "# mfu 40")
    house.extra["accept_empty_state"] = True
    house.chain.refused = ("not now",)
    async with house.running():
        await trio.sleep(60)
    house.extra.clear()
    house.chain.refused = ()
    async with house.running():
        await weights_set(house, {2: 65535})


async def test_weights_that_took_long_to_sign_are_ours(house, autojump_clock):
    house.chain.slow_signing = 42
    commit(house, "# mfu 40")
    async with house.running() as ctx:
        await weights_set(house, {2: 65535})
        await trio.sleep(60 * house.chain.block_seconds)
        assert ctx.board.problems == {}
    async with house.running() as ctx:
        await trio.sleep(60)
        assert ctx.board.problems == {}


async def test_after_a_restart_our_own_weights_are_no_doppelganger(house, autojump_clock):
    commit(house, "# mfu 40")
    async with house.running():
        await weights_set(house, {2: 65535})
    sent = len(house.chain.sent)
    async with house.running() as ctx:
        await trio.sleep(60 * house.chain.block_seconds)
        assert ctx.board.problems == {}
    assert len(house.chain.sent) > sent


async def test_a_new_registration_of_our_hotkey_is_no_doppelganger(house, autojump_clock):
    commit(house, "# mfu 40")
    async with house.running() as ctx:
        await weights_set(house, {2: 65535})
        await trio.sleep(30 * house.chain.block_seconds)
        house.chain.block += 200
        house.chain.neuron_list[1] = msgspec.structs.replace(house.chain.neuron_list[1], registered_block=house.chain.block)
        house.chain.last_update = house.chain.block
        await trio.sleep(60 * house.chain.block_seconds)
        assert ctx.board.problems == {}


async def test_weights_sent_by_the_last_process_are_still_read_back(house, autojump_clock):
    commit(house, "# mfu 40")
    send = house.chain.set_weights

    async def slow_to_apply(plan, **more):
        outcome = await send(plan, **more)
        house.chain.weights, house.chain.pending = {}, 1
        return outcome

    house.chain.set_weights = slow_to_apply
    async with house.running():
        await eventually(lambda: house.chain.sent)
    house.chain.weights, house.chain.pending = dict(house.chain.sent[-1]), 0
    async with house.running() as ctx:
        await trio.sleep(60)
        assert (await ctx.store.weights()).equal is True
    assert len(house.chain.sent) == 1


async def test_weights_that_are_sent_and_never_applied_are_a_problem_however_often_they_are_sent(house, autojump_clock):
    commit(house, "# mfu 40")
    async with house.running() as ctx:
        await weights_set(house, {2: 65535})
        house.chain.applies, house.chain.pending = False, 1
        commit(house, "# mfu 45", hotkey="5Miner3", uid=3, block=40)
        await trio.sleep(100 * house.chain.block_seconds)
        assert len(house.chain.sent) >= 4
        assert "no vector that we asked for" in ctx.board.problems["weights on chain"]
        assert ctx.weights_equal is False
        house.chain.weights = {3: 65535}
        await eventually(lambda: not ctx.board.problems)


async def test_a_refused_vector_is_held_with_the_chains_reason(house, autojump_clock):
    house.chain.refused = ("uid 1 holds no validator permit",)
    commit(house, "# mfu 40")
    async with house.running() as ctx:
        await trio.sleep(900)
        assert "no validator permit" in ctx.board.problems["weights"]
    assert house.chain.sent == []


# ------------------------------------------------------------------------------------------------ the machine


async def test_a_clock_that_jumps_back_an_hour_holds_up_nothing(house, autojump_clock):
    early = commit(house, "# mfu 40\n# fault referee")
    async with house.running() as ctx:
        await trio.sleep(30)
        real = ctx.now
        ctx.now = lambda: real() - 3600
        late = commit(house, "# mfu 41", hotkey="5Miner3", uid=3, block=11)
        for submission in (early, late):
            assert (await house.until(submission, patience=300)).submission.status is Status.SCORED


async def test_sighup_takes_what_is_safe_and_names_the_rest(house, autojump_clock, tmp_path, caplog):
    path = tmp_path / "hparams.toml"
    text = (Path(__file__).parent.parent / "hparams.toml").read_text()
    house.settings = hparams.load()
    async with house.running() as ctx:
        config = dataclasses.replace(house.config(trio.Event()), hparams_path=path)
        path.write_text(text.replace("[scoring]", "[daemon]\nmax_attempts = 7\n\n[scoring]\nburn = 0.1"))
        with caplog.at_level("INFO", "crusades"):
            reload_settings(ctx, config)
        assert (ctx.hparams.daemon.max_attempts, ctx.hparams.scoring.burn) == (7, 0.0)
        assert "reloaded daemon" in caplog.text
        assert "SIGHUP: scoring changed too" in caplog.text
        path.write_text(text + '\n[store]\nkeep_backups = 3\n[daemon]\nwebhook_url = "https://hooks.example/a-new-secret"\n')
        reload_settings(ctx, config)
        assert ctx.store.settings.keep_backups == 3
        assert "a-new-secret" not in logs.redactor.clean("posting to https://hooks.example/a-new-secret")
        path.write_text("[daemon]\nmax_atempts = 7")
        reload_settings(ctx, config)
        assert ctx.hparams.daemon.webhook_url == "https://hooks.example/a-new-secret"


async def test_a_full_disk_ends_the_daemon_and_loses_nothing(house, autojump_clock, monkeypatch):
    id_ = commit(house, "# mfu 40")

    async def full(*args, **kwargs):
        raise StoreError("the disk is full: free some space")

    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the story is the point
        async with house.running():
            await house.until(id_, Status.RUNNING)
            with monkeypatch.context() as patch:
                patch.setattr(Store, "add_run", full)
                await trio.sleep(60)
    assert {type(e) for e in leaves(caught.value)} == {StoreError}
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED


# ------------------------------------------------------------------------------------------------ telling


async def test_it_is_ready_when_everything_is_and_says_what_it_waits_for(house, autojump_clock):
    house.chain.failing = ChainError("the node is down")
    async with house.running() as ctx:
        await trio.sleep(60)
        assert not ctx.board.is_ready
        assert ctx.board.ready["chain"] != "ready"
        house.chain.failing = None
        await eventually(lambda: ctx.board.is_ready, 300)


async def test_it_is_not_ready_before_everybody_it_needs_has_spoken(house, autojump_clock):
    async with house.running() as ctx:
        ctx.ready("store")
        assert not ctx.board.is_ready


async def test_during_an_outage_it_is_alive_and_not_ready(house, autojump_clock):
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        house.chain.failing, house.chain.problem = ChainError("the node is gone"), "the node is gone"
        await eventually(lambda: ctx.board.ready.get("chain") != "ready", patience=30)
        await trio.sleep(3600)
        assert ctx.board.late == {}
        assert not ctx.board.is_ready
        house.chain.failing, house.chain.problem = None, ""
        await eventually(lambda: ctx.board.is_ready, patience=60)


async def test_a_chain_that_stands_still_is_told_and_restarts_nobody(house, autojump_clock, caplog):
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        house.chain.halted = True
        await trio.sleep(3600)
        assert ctx.board.late == {}
        assert "no new block" in ctx.board.ready["chain"]
        assert "alert: no new block could be read" in caplog.text
        house.chain.halted = False
        await eventually(lambda: ctx.board.is_ready, patience=60)


async def test_a_read_that_failed_is_repeated_though_no_block_comes(house, autojump_clock):
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        house.chain.failing, house.chain.block = ChainError("lost"), house.chain.block + 1
        await trio.sleep(30)
        house.chain.halted, house.chain.failing = True, None
        id_ = commit(house, "# mfu 40")
        await house.until(id_, patience=120)


async def test_the_heartbeat_stops_and_people_are_told_as_long_as_something_is_wrong(house, autojump_clock, monkeypatch):
    pings, told = [], []

    async def ping(url, client):
        pings.append(url)

    async def post(url, text, client):
        told.append(text)
        return True

    monkeypatch.setattr("crusades.watch.heartbeat", ping)
    monkeypatch.setattr("crusades.watch.tell", post)
    daemon = msgspec.structs.replace(house.settings.daemon, webhook_url="https://hooks.example/x", heartbeat_url="https://beat.example/x")
    house.settings = msgspec.structs.replace(house.settings, daemon=daemon)
    async with house.running() as ctx:
        await trio.sleep(300)
        assert len(pings) >= 3
        assert told == []
        house.chain.failing, house.chain.problem = ChainError("the node is gone"), "the node is gone"
        await eventually(lambda: told, patience=400)
        assert "no new block could be read" in told[0]
        assert "the node is gone" in told[0]
        pings.clear()
        await trio.sleep(600)
        assert pings == []
        assert len(told) == 1
        house.chain.failing, house.chain.problem = None, ""
        await eventually(lambda: pings, patience=120)
        assert told[1].partition(": ")[2].startswith("over: ")
        assert ctx.board.problems == {}


async def test_a_webhook_that_does_not_answer_holds_up_no_watchdog(house, autojump_clock, monkeypatch):
    fed, tried = [], []

    async def silence(url, text, client):
        tried.append(text)
        await trio.sleep(10.0)
        return False

    monkeypatch.setattr("crusades.watch.tell", silence)
    monkeypatch.setattr("crusades.watch.alerts", lambda facts: [Alert(key=str(n), text=f"alert {n}") for n in range(8)])
    monkeypatch.setattr("crusades.watch.notify", lambda state, environment: fed.append(trio.current_time()) if state == "WATCHDOG=1" else None)
    house.settings = settings(webhook_url="https://hooks.example/x")
    async with house.running():
        await trio.sleep(600)
    assert max(later - sooner for sooner, later in itertools.pairwise(fed)) < LOOK + 1
    assert len(tried) > 16  # and it was asked again, long before an alert is repeated


async def test_a_subsystem_that_hangs_shows_everywhere(house, autojump_clock, monkeypatch):
    told = []
    monkeypatch.setattr("crusades.watch.notify", lambda state, environment: told.append(state))

    async def hangs(*statuses):
        await trio.sleep_forever()

    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        monkeypatch.setattr(ctx.store, "in_state", hangs)
        await trio.sleep(1000)
        assert {"scheduler", "checker"} <= ctx.board.late.keys()
        assert not ctx.board.is_ready
        assert "scheduler" in ctx.board.ready["progress"]
        told.clear()
        await trio.sleep(100)
        assert "WATCHDOG=1" not in told


@pytest.mark.parametrize(("name", "method"), [("watch", "counts"), ("slot events", "emit"), ("housekeeping", "backup")])
async def test_those_who_see_the_others_out_are_late_themselves_when_they_hang(house, autojump_clock, monkeypatch, name, method):
    async def hangs(*_args, **_kwargs):
        await trio.sleep_forever()

    monkeypatch.setattr(Store, method, hangs)
    async with house.running() as ctx:
        await trio.sleep(2400)
        assert name in ctx.health.late()


async def test_they_are_not_late_when_nothing_happens(house, autojump_clock):
    async with house.running() as ctx:
        house.chain.halted = True
        await trio.sleep(2400)
        assert ctx.health.late() == {}


async def test_a_runtime_that_lacks_something_is_no_silent_node(house, autojump_clock):
    house.chain.missing, house.chain.problem = ("SomeCall",), "the runtime (spec 2) lacks SomeCall: weights are held"
    async with house.running() as ctx:
        await trio.sleep(300)
        assert ctx.board.ready["chain"] == "ready"
        assert "lacks SomeCall" in ctx.board.problems["chain"]


async def test_a_start_in_an_outage_counts_from_the_start(house, autojump_clock):
    house.chain.failing, house.chain.problem = ChainError("the node is down"), "the node is down"
    async with house.running() as ctx:
        assert ctx.metrics.registry.get_sample_value("crusades_chain_head_age_seconds") >= 0


async def test_a_backup_that_never_succeeds_is_told(house, autojump_clock, monkeypatch, caplog):
    async def full(*_args, **_kwargs):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "backup", full)
    house.settings = msgspec.structs.replace(house.settings, store=msgspec.structs.replace(house.settings.store, backup_hours=0.1))
    async with house.running():
        await trio.sleep(900)
    assert "alert: there is no backup" in caplog.text


async def test_a_lost_registration_is_told(house, autojump_clock, caplog):
    async with house.running() as ctx:
        await eventually(lambda: ctx.board.is_ready)
        house.chain.neuron_list = [neuron for neuron in house.chain.neuron_list if neuron.hotkey != ctx.hotkey]
        await trio.sleep(600)
    assert "alert: the hotkey holds no uid of the subnet" in caplog.text


async def test_viewers_hear_of_slots_and_blocks(house, autojump_clock):
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        await house.until(id_)
        await trio.sleep(1)
        events = await ctx.store.events_since(0, 1000)
    states = [event.data["state"] for event in events if event.kind == "slot"]
    assert {"warming", "idle", "running"} <= set(states)
    assert [event for event in events if event.kind == "block"]


@pytest.fixture
def bounds(monkeypatch):
    """After how many seconds the process would have been ended, in place of ending it."""
    seconds = []
    monkeypatch.setattr("crusades.daemon.leave_within", seconds.append)
    return seconds


async def test_a_signal_during_the_start_ends_it_at_once(house, autojump_clock, bounds):
    config = dataclasses.replace(house.config(trio.Event()), handle_signals=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(listen_to_signals, Reins(), config, nursery.cancel_scope)
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep(3600)
    assert config.stop.is_set()
    assert nursery.cancel_scope.cancelled_caught
    assert bounds == [AT_ONCE]


async def test_a_shutdown_that_hangs_has_a_bound_and_a_second_signal_a_short_one(house, autojump_clock, bounds):
    async with house.running() as ctx, trio.open_nursery() as nursery:
        config = dataclasses.replace(house.config(trio.Event()), handle_signals=True)
        await nursery.start(listen_to_signals, Reins(ctx), config, nursery.cancel_scope)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep(1)
    assert bounds == [ctx.hparams.daemon.shutdown_grace + LAST_RESORT, AT_ONCE]


async def test_a_start_that_is_stopped_does_not_wait_for_imports(monkeypatch):
    done, begun = threading.Event(), threading.Event()
    monkeypatch.setattr("crusades.daemon._load_early", lambda: (begun.set(), done.wait()))
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load_early, trio.Event())
                await trio.to_thread.run_sync(begun.wait)
                nursery.cancel_scope.cancel()
    finally:
        done.set()


def test_what_was_imported_is_not_walked_through_by_every_collection():
    program = "import gc; from crusades.daemon import _load_early; _load_early(); print(gc.get_freeze_count())"
    frozen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout
    assert int(frozen) > 50_000


async def test_a_driver_that_hangs_does_not_hold_up_the_stop(house):
    done, begun = threading.Event(), threading.Event()
    house.settings = msgspec.structs.replace(house.settings, competition=msgspec.structs.replace(house.settings.competition, dev_profile="qwen2.5-3b"))
    house.parts["devices"] = lambda: (begun.set(), done.wait(), ())[2]
    try:
        with trio.fail_after(60):
            async with house.running():
                await trio.to_thread.run_sync(begun.wait)
    finally:
        done.set()


async def test_the_page_names_the_node_and_not_the_key_to_it(house, autojump_clock):
    config = dataclasses.replace(house.config(trio.Event()), network="wss://node.example/v2/kEy-1234567")
    async with house.running() as ctx:
        assert make_context(config, ctx.store, house.chain, is_dev=True).board.network == "wss://node.example"


async def test_while_the_node_must_say_which_chain_it_is_systemd_is_told(house, autojump_clock, monkeypatch):
    told = []
    monkeypatch.setattr("crusades.daemon.notify", told.append)
    house.chain.failing = ChainError("nobody answers")
    with trio.move_on_after(10):
        await is_dev(dataclasses.replace(house.config(trio.Event()), network="ws://node.example"), house.chain)
    assert told[0] == "STATUS=PROBLEM waiting for the node: nobody answers"


def test_a_download_that_was_given_up_early_or_withdrawn_is_not_waited_for():
    retries = Retries()
    retries.postpone("withdrawn", 5.0)
    retries.failed("again", 10.0)
    retries.keep_only(["again", "new"])
    assert retries.wait(10.0) == FIRST_RETRY
