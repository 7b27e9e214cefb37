"""What becomes of an attempt that is cut short: on the virtual clock, with the real store."""

import msgspec
import pytest
import trio
from daemon_house import House, eventually
from fakes import make_commitment, make_source

from crusades.nvml import Device
from crusades.records import Status

CARD = Device(index=0, minor=0, name="Fake", uuid="GPU-0", memory_bytes=1)


@pytest.fixture
async def house(tmp_path):
    return House(tmp_path / "state")


def change_tiny(house, **fields):
    tiny = msgspec.structs.replace(house.settings.profile("tiny"), **fields)
    house.settings = msgspec.structs.replace(house.settings, profiles={**house.settings.profiles, "tiny": tiny})


def commit(house, text):
    source = make_source(text)
    house.serve_file(source)
    house.chain.rows.append(make_commitment("5Miner2", 10, source, uid=2))
    return house.chain.rows[-1].submission_id


@pytest.mark.parametrize(("anchored", "handed_in"), [(0, [0, 2]), (3, [0, 0])])
async def test_finished_runs_go_on_unless_the_profile_anchors_steps(house, autojump_clock, anchored, handed_in):
    """Anchors die with the attempt: a run that outlived them would never be compared."""
    change_tiny(house, audit=msgspec.structs.replace(house.settings.profile("tiny").audit, anchored_runs=anchored))
    id_ = commit(house, "# mfu 40")
    house.judge.seconds = 5.0
    async with house.running():
        await house.until(id_, Status.RUNNING)
        await trio.sleep(12.0)  # the warm-up and a run have ended, the next is under way and will be ended
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED
    assert [runs for _, runs in house.judge.evaluated] == handed_in


async def test_finished_runs_do_not_go_on_under_other_rules(house, autojump_clock, monkeypatch):
    """Those of then cannot be applied any more, and today's are another workload or other limits."""
    id_ = commit(house, "# mfu 40")
    house.judge.seconds = 5.0
    async with house.running():
        await house.until(id_, Status.RUNNING)
        await trio.sleep(12.0)
    monkeypatch.setattr("crusades.rulebook.Rulebook.version_at", lambda self, block: "of then")
    monkeypatch.setattr("crusades.rulebook.Rulebook.at", lambda self, block: self.current)
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED
    assert [runs for _, runs in house.judge.evaluated] == [0, 0]


async def test_only_an_evaluation_that_can_go_on_after_a_restart_gets_the_grace(house, autojump_clock):
    """While its runs are being made, and not when it is over: a control run or a warm-up is begun anew anyway."""
    id_ = commit(house, "# mfu 40")
    house.judge.seconds = 5.0
    async with house.running():
        await house.until(id_, Status.RUNNING)
        (seat,) = house.context.seats.values()
        assert seat.keeps_runs
        await house.until(id_)
        await eventually(lambda: not seat.keeps_runs)


async def test_while_submissions_wait_no_exams_are_prepared_for_later_ones(house, autojump_clock):
    sources = [make_source(f"# mfu {40 + uid}") for uid in (2, 3)]
    for uid, source in enumerate(sources, 2):
        house.serve_file(source)
        house.chain.rows.append(make_commitment(f"5Miner{uid}", 10, source, uid=uid))
    house.judge.seconds = 5.0
    async with house.running():
        for row in house.chain.rows[-2:]:
            await house.until(row.submission_id)
        await trio.sleep(1.0)
    assert house.judge.warmed == [True, False, True]


@pytest.mark.parametrize(("text", "counted"), [("# mfu 40", 0.0), ("# mfu 40\n# uneven", 1.0)])
async def test_evaluations_that_were_made_twice_are_counted(house, autojump_clock, text, counted):
    """A host that is not quiet shows in them."""
    id_ = commit(house, text)
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED
        await eventually(lambda: b"crusades_evaluations_total{outcome" in house.context.metrics.render())
        assert f"crusades_second_rounds_total {counted}".encode() in house.context.metrics.render()


async def test_a_device_lost_between_verdict_and_writing_costs_the_submission_nothing(house, autojump_clock):
    change_tiny(house, device="cuda")
    cards = [CARD]
    house.parts["devices"] = lambda: tuple(cards)
    id_ = commit(house, "# mfu 40")
    async with house.running() as ctx:
        finish, judged = ctx.store.finish, trio.Event()

        async def stuck(*_, **__):
            judged.set()
            await trio.sleep_forever()

        ctx.store.finish = stuck
        await judged.wait()
        cards.clear()
        detail = await house.until(id_, Status.QUEUED)
        assert detail.submission.reason.code == 2005
        ctx.store.finish = finish
        cards.append(CARD)
        assert (await house.until(id_)).submission.status is Status.SCORED
