"""What a slot is opened with."""

from types import SimpleNamespace

from crusades import hparams
from crusades.devices import DaemonConfig, slot_config


async def test_a_slot_publishes_the_seeds_of_its_retired_exams_as_an_event(tmp_path):
    told = []

    async def emit(*event):
        told.append(event)

    ctx = SimpleNamespace(store=SimpleNamespace(emit=emit), profile_name="tiny", hparams=hparams.load())
    config = DaemonConfig(hparams=ctx.hparams, network="dev", netuid=1, state_dir=tmp_path, wallet=None)
    await slot_config(config, ctx, "cpu", 0).on_retired(("aa", "bb"))
    assert told == [("exams", {"slot": "cpu", "retired_seeds": ["aa", "bb"]})]
