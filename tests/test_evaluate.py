"""One evaluation from the daemon's side, with stand-ins for referee, contestant and card."""

import dataclasses
import os
import socket
import subprocess
import tempfile

import msgspec
import pytest
import trio
from evaluate_kit import GONE, FakeCard, FakeContestant, FakeReferee, make_job, make_slot, ran

from crusades.bench import contestant, evaluate
from crusades.bench import protocol as p
from crusades.bench import slot as slot_module
from crusades.bench.contestant import Contestant
from crusades.bench.link import RefereeLink, start_referee
from crusades.errors import DeviceFault, EnvironmentFault, RefereeFault, SandboxFault
from crusades.nvml import LATE
from crusades.records import Reason, Stage
from crusades.sandbox.box import ExitStatus
from crusades.sandbox.policy import ENVIRONMENT


class FakeBox:
    """One that has ended like this."""

    limits, pid = {}, 3

    def __init__(self, status):
        self.status = status

    async def wait(self):
        return self.status


STUCK = SandboxFault("a process of sandbox 7 does not die")


# ------------------------------------------------------------------------------------------------ a process that does not die


async def test_a_slot_ends_whole_although_its_contestant_does_not_die(tmp_path):
    referee, card = FakeReferee(), FakeCard()
    slot = make_slot(tmp_path, referee, FakeContestant(STUCK), card)
    await slot.stop()
    assert referee.killed
    assert card.closed


async def test_an_evaluation_whose_contestant_does_not_die_takes_the_referee_along(tmp_path):
    """And the verdict stands: else to die slowly would be a way to roll again."""
    referee = FakeReferee(LoadSubmission=p.SubmissionLoaded(reason=GONE))
    slot = make_slot(tmp_path, referee, FakeContestant(STUCK))
    assert (await slot.evaluate(make_job())).code == 1303
    assert referee.killed
    assert slot._contestant is None


async def test_a_slot_whose_last_contestant_did_not_die_says_so_before_the_next(tmp_path):
    slot = make_slot(tmp_path, FakeReferee(LoadSubmission=p.SubmissionLoaded(reason=GONE)), FakeContestant(STUCK))
    await slot.evaluate(make_job())
    with pytest.raises(SandboxFault, match="does not die"):
        await slot.warm()
    assert slot._stuck is None, "told once: the slot is opened anew then, and the control run decides"


async def test_a_contestant_that_does_not_die_before_there_is_a_verdict_is_our_fault(tmp_path):
    referee = FakeReferee(LoadSubmission=p.RefereeError(message="broken"))
    with pytest.raises(SandboxFault, match="does not die"):
        await make_slot(tmp_path, referee, FakeContestant(STUCK)).evaluate(make_job())
    assert referee.killed


async def test_a_kill_for_want_of_the_machines_memory_is_not_the_submissions(tmp_path):
    status = ExitStatus(code=None, signal=9, oom_killed=False, text="the machine ran out of memory", machine_oom=True)
    with pytest.raises(SandboxFault, match="ran out of memory"):
        await Contestant(FakeBox(status), tempfile.TemporaryDirectory(dir=tmp_path), "train.py", ()).explain_exit(GONE)


async def test_a_run_that_failed_its_audit_is_none_to_go_on_with(tmp_path):
    told = []

    async def on_run(run):
        told.append(run.index)

    wrong = Reason(code=1401, stage=Stage.AUDIT, message="half was left out")
    referee = FakeReferee(DoRun=lambda order: ran(order.index, reason=wrong if order.index == 1 else None))
    verdict = await make_slot(tmp_path, referee).evaluate(make_job(on_run=on_run))
    assert (verdict.code, [run.index for run in verdict.runs], told) == (1401, [0, 1], [0])


async def test_what_was_cancelled_before_it_was_sent_leaves_the_referee_usable(tmp_path):
    ours, theirs = socket.socketpair()
    link = RefereeLink(subprocess.Popen(["sleep", "60"]), ours, tmp_path / "log")  # noqa: ASYNC220 - as start_referee does
    with theirs, trio.CancelScope() as scope:
        scope.cancel()
        await link.ask(p.Release())
    assert link.usable()
    await link.kill()


async def test_a_referee_that_does_not_die_is_told_within_a_bound(tmp_path, autojump_clock):
    """A driver that hangs keeps a process for ever; whoever waited for it would keep slot and daemon."""
    process, (ours, theirs) = subprocess.Popen(["sleep", "60"]), socket.socketpair()  # noqa: ASYNC220 - as start_referee does
    link, kill = RefereeLink(process, ours, tmp_path / "log", gpu=7), process.kill
    process.kill = lambda: None
    with theirs, pytest.raises(RefereeFault, match=f"process {process.pid}, does not die"):
        await link.kill()
    assert not link.usable()
    for _ in range(2):  # whichever slot asks, and however often
        with pytest.raises(RefereeFault, match="still does not die and holds cuda:7"):
            start_referee(tmp_path, 7)
    kill()
    process.wait()
    await link.kill()  # gone meanwhile: nothing to wait for
    with pytest.raises(FileNotFoundError):  # it would be started now: the folder for its log is missing
        start_referee(tmp_path / "missing", 7)


class Undying(FakeReferee):
    async def kill(self):
        self.killed = True
        raise RefereeFault("the referee does not die")


async def test_what_a_referee_that_does_not_die_was_killed_for_is_told(tmp_path):
    slot = make_slot(tmp_path, Undying(LoadSubmission=p.RefereeError(message="CUDA error: unspecified launch failure", code=2003)))
    with pytest.raises(DeviceFault, match="unspecified launch failure"):
        await slot.evaluate(make_job())


async def test_a_verdict_stands_although_the_referee_dies_slowly_afterwards(tmp_path):
    slot = make_slot(tmp_path, Undying(LoadSubmission=p.SubmissionLoaded(reason=GONE), Release=p.RefereeError(message="CUDA error")))
    assert (await slot.evaluate(make_job())).code == 1303
    with pytest.raises(RefereeFault, match="does not die"):
        await slot.warm()


async def test_a_slot_ends_whole_although_its_referee_does_not_die(tmp_path):
    card = FakeCard()
    await make_slot(tmp_path, Undying(), FakeContestant(), card).stop()
    assert card.closed


async def test_no_second_referee_is_started_on_a_card_that_the_first_still_holds(tmp_path, monkeypatch):
    slot = make_slot(tmp_path, Undying())
    slot._referee.killed = True
    monkeypatch.setattr(slot_module, "start_referee", lambda *_: pytest.fail("started beside the other"))
    for _ in range(2):
        with pytest.raises(RefereeFault, match="does not die"):
            await slot.warm()


async def test_the_folder_of_a_contestant_that_does_not_die_is_removed(tmp_path):
    directory = tempfile.TemporaryDirectory(dir=tmp_path)
    with pytest.raises(SandboxFault):
        await Contestant(FakeContestant(STUCK), directory, "train.py", ()).kill()
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ whose doing it was


@pytest.mark.parametrize("answers", [{"LoadSubmission": p.SubmissionLoaded(reason=GONE, contestant_gone=True)}, {"DoRun": p.Ran(reason=GONE, contestant_gone=True)}])
async def test_a_process_that_is_gone_is_asked_how_it_ended(tmp_path, answers):
    """At whatever moment: the kernel's word on its memory is known to the daemon alone."""
    verdict = await make_slot(tmp_path, FakeReferee(**answers)).evaluate(make_job())
    assert (verdict.code, verdict.message) == (1305, "the memory limit was reached")


async def test_a_contestant_gets_the_node_of_the_slots_card(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(slot_module, "start_contestant", lambda config, channel, node: given.append(node) or FakeContestant())
    card = FakeCard()
    card.minor = 3
    await make_slot(tmp_path, card=card)._connect()
    assert given == [3]


class Ahead:
    """A warm slot with anchors whose contestants are told apart; notes when each is started, and who lives then."""

    def __init__(self, folder, monkeypatch, **config):
        self.made, self.first = [], FakeContestant()
        self.referee = FakeReferee(CompareAnchors=lambda order: self.asked.append("compare") or p.AnchorsCompared(runs=(), seconds=0.0))
        self.asked = []
        self.slot = make_slot(folder, self.referee, self.first)
        self.slot.config = dataclasses.replace(self.slot.config, **config)
        monkeypatch.setattr(slot_module, "start_contestant", self.start)

    def start(self, config, channel, node):
        self.asked.append("first is dead" if self.first.killed else "first lives")
        self.made.append(FakeContestant())
        return self.made[-1]


async def test_the_next_sandbox_starts_when_the_last_contestant_is_dead_and_beside_the_comparison(tmp_path, monkeypatch):
    ahead = Ahead(tmp_path, monkeypatch, keeps_warm=True)
    await ahead.slot.evaluate(make_job())
    assert ahead.asked == ["first is dead", "compare"]
    await ahead.slot.warm()
    assert ahead.slot._contestant is ahead.made[0]
    assert len(ahead.made) == 1


async def test_one_that_died_while_it_waited_is_replaced(tmp_path, monkeypatch):
    ahead = Ahead(tmp_path, monkeypatch, keeps_warm=True)
    await ahead.slot.evaluate(make_job())
    ahead.made[0].killed = True
    await ahead.slot.warm()
    assert ahead.slot._contestant is ahead.made[1]


async def test_a_slot_that_ends_takes_the_one_that_waits_along(tmp_path, monkeypatch):
    ahead = Ahead(tmp_path, monkeypatch, keeps_warm=True)
    await ahead.slot.evaluate(make_job())
    await ahead.slot.stop()
    assert ahead.made[0].killed


@pytest.mark.parametrize("error", [SandboxFault("no room for another group"), OSError("too many open files")])
async def test_runs_are_not_lost_because_the_next_sandbox_cannot_start(tmp_path, monkeypatch, error):
    ahead = Ahead(tmp_path, monkeypatch, keeps_warm=True)

    def fail(*_):
        raise error

    monkeypatch.setattr(slot_module, "start_contestant", fail)
    assert (await ahead.slot.evaluate(make_job())).verdict == "accepted"
    with pytest.raises(type(error)):
        await ahead.slot.warm()


async def test_two_processes_without_walls_have_words_of_their_own(tmp_path):
    config = dataclasses.replace(make_slot(tmp_path).config, sandboxed=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = contestant.start_contestant(config, theirs, None)
        os.write(one._box._output.fileno(), b"the last words")
        await one.kill()
        other = contestant.start_contestant(config, theirs, None)
        await other.kill()
    assert "the last words" in one.output_tail()
    assert "the last words" not in other.output_tail()


async def test_nobody_is_started_where_nobody_is_expected(tmp_path, monkeypatch):
    ahead = Ahead(tmp_path, monkeypatch)
    await ahead.slot.evaluate(make_job())
    assert ahead.made == []


@pytest.mark.parametrize(("reason", "watched", "seconds"), [(GONE, True, LATE), (None, True, 0.0), (GONE, False, 0.0)])
async def test_a_failed_run_is_watched_until_the_cards_word_on_it_has_come(tmp_path, autojump_clock, reason, watched, seconds):
    """An Xid is polled: the referee's report is here before it."""
    card = FakeCard(watched=watched)
    await make_slot(tmp_path, FakeReferee(DoRun=lambda order: ran(order.index, reason=reason)), card=card).evaluate(make_job())
    assert card.windows[0] == pytest.approx(seconds)


async def test_the_report_names_the_driver_of_the_card(tmp_path):
    card = FakeCard()
    card.driver = "570.86"
    assert (await make_slot(tmp_path, card=card).evaluate(make_job())).environment["driver"] == "570.86"


@pytest.mark.parametrize(("code", "kind"), [(2001, SandboxFault), (2002, RefereeFault), (2003, DeviceFault), (2006, EnvironmentFault)])
async def test_the_referees_code_says_whose_failure_it_was_whatever_the_words(tmp_path, code, kind):
    error = p.RefereeError(message="a word like harness proves nothing", code=code)
    with pytest.raises(kind) as caught:
        await make_slot(tmp_path, FakeReferee(PrepareExams=error)).evaluate(make_job())
    assert type(caught.value) is kind


# ------------------------------------------------------------------------------------------------ exams


async def test_seeds_of_retired_exams_are_published(tmp_path):
    published = []

    async def publish(seeds):
        published.extend(seeds)

    slot = make_slot(tmp_path, FakeReferee(PrepareExams=p.ExamsReady(available=3, prepared=0, seconds=0.0, retired_seeds=("aa", "bb"))))
    slot.config = dataclasses.replace(slot.config, on_retired=publish)
    await slot.evaluate(make_job())
    assert published == ["aa", "bb"]


@pytest.mark.parametrize("watched", [True, False])
async def test_an_idle_slot_prepares_all_exams_that_an_evaluation_may_need(tmp_path, watched):
    """Else the evaluation would draw a second set of weights for the few that are missing."""
    referee = FakeReferee()
    slot = make_slot(tmp_path, referee, card=FakeCard(watched=watched))
    await slot.warm()
    await slot.evaluate(make_job())
    first, second = (order.wanted for order in referee.orders if isinstance(order, p.PrepareExams))
    assert first == second


async def test_a_slot_that_warms_up_for_a_waiting_submission_prepares_none_for_later_ones(tmp_path):
    referee = FakeReferee()
    await make_slot(tmp_path, referee).warm(exams=False)
    assert not any(isinstance(order, p.PrepareExams) for order in referee.orders)


# ------------------------------------------------------------------------------------------------ an attempt that goes on


async def test_a_contestant_cannot_tell_that_runs_were_kept(tmp_path):
    seen = {}
    for kept in (0, 1):
        referee, done = FakeReferee(), tuple(ran(index).run for index in range(1, kept + 1))
        verdict = await make_slot(tmp_path, referee, runs=2 + kept).evaluate(make_job(finished_runs=done))
        seen[kept] = [order.index for order in referee.orders if isinstance(order, p.DoRun)]
    assert [run.index for run in verdict.runs] == [1, 0, 2, 3]
    assert seen[0] == seen[1] == [0, 1, 2]


async def test_a_contestant_cannot_tell_a_repeated_run_from_the_next(tmp_path, monkeypatch):
    void = iter(["", "hot", "", ""])
    monkeypatch.setattr(evaluate, "settle", lambda ran, blame, telemetry: msgspec.structs.replace(ran, run=msgspec.structs.replace(ran.run, void=next(void))))
    referee = FakeReferee()
    verdict = await make_slot(tmp_path, referee).evaluate(make_job())
    assert [run.index for run in verdict.runs] == [0, 1, 1, 2]
    assert [order.index for order in referee.orders if isinstance(order, p.DoRun)] == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------ uneven runs


def mfus(*values):
    """A referee whose scored runs come out at these percentages, in order."""
    told = iter(values)

    def answer(order):
        found = ran(order.index)
        return msgspec.structs.replace(found, run=msgspec.structs.replace(found.run, mfu=next(told))) if order.scored else found

    return FakeReferee(DoRun=answer)


def uneven_slot(folder, monkeypatch, referee, first=None):
    made = [first or FakeContestant()]
    monkeypatch.setattr(slot_module, "start_contestant", lambda *_: made.append(FakeContestant()) or made[-1])
    return make_slot(folder, referee, made[0], runs=3, uneven=0.015), made


async def test_uneven_runs_are_made_once_more_and_the_median_of_all_counts(tmp_path, monkeypatch):
    """Slowed down by a busy host, say: the second round's runs pull the score to where most of all runs are."""
    referee = mfus(40.0, 38.0, 36.0, 40.1, 40.2, 40.3)
    slot, made = uneven_slot(tmp_path, monkeypatch, referee)
    verdict = await slot.evaluate(make_job())
    assert verdict.score_mfu == (40.0 + 40.1) / 2
    assert "5.3% faster than the median of 3" in "".join(verdict.notes)
    assert [(run.index, run.scored) for run in verdict.runs] == [(0, False), (1, True), (2, True), (3, True), (4, False), (5, True), (6, True), (7, True)]
    assert [order.index for order in referee.orders if isinstance(order, p.DoRun)] == [0, 1, 2, 3] * 2, "each contestant counts what it does itself"
    assert [contestant.killed for contestant in made] == [True, True]


async def test_what_is_uneven_twice_is_not_made_a_third_time(tmp_path, monkeypatch):
    slot, made = uneven_slot(tmp_path, monkeypatch, mfus(*[40.0, 38.0, 36.0] * 2))
    assert (await slot.evaluate(make_job())).score_mfu == 38.0
    assert len(made) == 2


@pytest.mark.parametrize("values", [(40.0, 39.5, 39.4), (40.0, 40.1, 30.0)], ids=["even", "one is slow, which no median feels"])
async def test_runs_whose_median_is_near_the_fastest_are_not_repeated(tmp_path, monkeypatch, values):
    slot, made = uneven_slot(tmp_path, monkeypatch, mfus(*values))
    verdict = await slot.evaluate(make_job())
    assert (len(verdict.runs), len(made)) == (4, 1)


async def test_a_failure_in_the_second_round_is_a_failure(tmp_path, monkeypatch):
    wrong = Reason(code=1401, stage=Stage.AUDIT, message="half was left out")
    values, loads = iter([40.0, 38.0, 36.0]), []

    def answer(order):
        found = ran(order.index, reason=wrong if len(loads) == 2 else None)
        return msgspec.structs.replace(found, run=msgspec.structs.replace(found.run, mfu=next(values))) if order.scored else found

    referee = FakeReferee(DoRun=answer, LoadSubmission=lambda order: loads.append(order) or p.SubmissionLoaded())
    verdict = await uneven_slot(tmp_path, monkeypatch, referee)[0].evaluate(make_job())
    assert (verdict.code, [run.index for run in verdict.runs]) == (1401, [0, 1, 2, 3, 4])


async def test_who_dies_slowly_after_uneven_runs_keeps_the_verdict_on_them(tmp_path, monkeypatch):
    """Else a slow death would be a way to have a verdict made anew. Without anchors: where steps are anchored the contestant has to
    be dead before there is a verdict."""
    slot, made = uneven_slot(tmp_path, monkeypatch, mfus(40.0, 38.0, 36.0), FakeContestant(STUCK))
    slot._profile = msgspec.structs.replace(slot._profile, audit=msgspec.structs.replace(slot._profile.audit, anchored_runs=0))
    assert (await slot.evaluate(make_job())).score_mfu == 38.0
    assert len(made) == 1
    assert slot._stuck is STUCK


@pytest.mark.parametrize("order", [p.PrepareExams, p.LoadSubmission, p.DoRun, p.CompareAnchors])
async def test_a_fault_of_ours_in_the_second_round_leaves_the_first_ones_verdict(tmp_path, monkeypatch, order):
    """And the slot says at the next use that something was wrong."""
    values, asked = iter([40.0, 38.0, 36.0, 40.0, 40.0, 40.0]), []

    def answer(told):
        asked.append(type(told))
        if asked.count(p.LoadSubmission) + (type(told) is p.PrepareExams) == 2 and type(told) is order:
            return p.RefereeError(message="out of luck")
        match told:
            case p.PrepareExams():
                return p.ExamsReady(available=told.wanted, prepared=0, seconds=0.0)
            case p.LoadSubmission():
                return p.SubmissionLoaded()
            case p.CompareAnchors():
                return p.AnchorsCompared(runs=(), seconds=0.0)
        found = ran(told.index)
        return msgspec.structs.replace(found, run=msgspec.structs.replace(found.run, mfu=next(values))) if told.scored else found

    referee = FakeReferee(**dict.fromkeys(["PrepareExams", "LoadSubmission", "DoRun", "CompareAnchors"], answer))
    slot, _ = uneven_slot(tmp_path, monkeypatch, referee)
    verdict = await slot.evaluate(make_job())
    assert (verdict.verdict, verdict.score_mfu, len(verdict.runs)) == ("accepted", 38.0, 4)
    assert "our fault prevented that" in verdict.notes[-1]
    with pytest.raises(RefereeFault, match="out of luck"):
        await slot.warm()


async def test_a_referee_that_died_between_the_rounds_is_started_anew(tmp_path, monkeypatch):
    first = mfus(40.0, 38.0, 36.0)
    slot, _ = uneven_slot(tmp_path, monkeypatch, first)
    monkeypatch.setattr(slot_module, "start_referee", lambda *_: mfus(40.1, 40.2, 40.3))
    first.answers["Release"] = lambda order: setattr(first, "killed", True) or p.RefereeError(message="dead")
    assert (await slot.evaluate(make_job())).score_mfu == (40.0 + 40.1) / 2


async def test_the_second_round_takes_the_sandbox_that_was_started_ahead(tmp_path, monkeypatch):
    slot, made = uneven_slot(tmp_path, monkeypatch, mfus(40.0, 38.0, 36.0, 40.1, 40.2, 40.3))
    slot.config = dataclasses.replace(slot.config, keeps_warm=True)
    await slot.evaluate(make_job())
    assert [contestant.killed for contestant in made] == [True, True, False], "and the third waits for the next submission"


async def test_a_cancellation_between_the_rounds_ends_everything(tmp_path, monkeypatch):
    referee = mfus(40.0, 38.0, 36.0)
    slot, made = uneven_slot(tmp_path, monkeypatch, referee)
    with trio.CancelScope() as scope:
        await slot.evaluate(make_job(on_progress=lambda words: scope.cancel() if "once more" in words else None))
    assert scope.cancelled_caught
    assert [contestant.killed for contestant in made] == [True]


async def test_a_control_run_is_made_once(tmp_path, monkeypatch):
    slot, made = uneven_slot(tmp_path, monkeypatch, mfus(40.0, 38.0, 36.0))
    assert (await slot.evaluate(make_job(second_round=False))).score_mfu == 38.0
    assert len(made) == 1


async def test_of_an_interrupted_second_round_nothing_is_kept(tmp_path, monkeypatch):
    """The first one's runs say again that there has to be one."""
    kept = tuple(msgspec.structs.replace(ran(1).run, index=index, mfu=mfu) for index, mfu in [(1, 40.0), (2, 38.0), (3, 36.0), (5, 40.0), (6, 40.0)])
    slot, _ = uneven_slot(tmp_path, monkeypatch, mfus(40.1, 40.2, 40.3))
    verdict = await slot.evaluate(make_job(finished_runs=kept))
    assert [run.index for run in verdict.runs] == [1, 2, 3, 0, 4, 5, 6, 7]
    assert verdict.score_mfu == (40.0 + 40.1) / 2


def test_threads_spin_without_a_sandbox_as_they_do_in_it(tmp_path, monkeypatch):
    """The default spins for so long that a busy machine ends honest runs at their deadline."""
    started = []
    monkeypatch.setattr(contestant.subprocess, "Popen", lambda *_, env, **__: started.append(env))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        contestant._PlainBox(make_slot(tmp_path).config, theirs)
    assert started[0]["GOMP_SPINCOUNT"] == ENVIRONMENT["GOMP_SPINCOUNT"]
