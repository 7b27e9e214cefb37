"""`crusades bench` around the judge: what is asked of the file before, what is said of the verdict after. The judge is a stand-in."""

import contextlib

import msgspec
import pytest

from crusades import hparams
from crusades.bench import local
from crusades.records import Outcome, Verdict

GOOD = b"def inner_steps(model, data_iterator, optimizer, num_steps, device):\n    return None\n"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Judges a text by settings; every file that reaches the judge is accepted."""

    class Slot:
        async def evaluate(self, job):
            return Verdict(verdict=Outcome.ACCEPTED, message="accepted", notes=("the judge's own",))

    @contextlib.asynccontextmanager
    async def open_slot(config):
        yield Slot()

    monkeypatch.setattr(local, "open_slot", open_slot)

    async def run(content, settings):
        path = tmp_path / "train.py"
        path.write_bytes(content)
        return await local.run_bench(local.BenchConfig(path=path, hparams=settings, profile_name="tiny", device="cpu"))

    return run


async def test_a_profile_without_limits_says_that_nothing_was_judged(bench):
    settings = hparams.load()
    bare = msgspec.structs.replace(settings, profiles={"tiny": msgspec.structs.replace(settings.profile("tiny"), limits={})})
    verdict = await bench(GOOD, bare)
    assert verdict.notes[0] == "the judge's own"
    assert "judged nothing" in verdict.notes[1]
    assert "crusades calibrate --profile tiny" in verdict.notes[1]
    assert (await bench(GOOD, settings)).notes == ("the judge's own",)


async def test_the_rules_read_as_much_as_the_settings_allow(bench):
    settings = hparams.load()
    roomy = msgspec.structs.replace(settings, fetch=msgspec.structs.replace(settings.fetch, max_bytes=600_000))
    assert (await bench(GOOD + b"#" * 550_000, roomy)).verdict is Outcome.ACCEPTED
