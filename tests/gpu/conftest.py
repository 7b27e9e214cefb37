"""Nothing in here runs without a card."""

import json
from pathlib import Path

import msgspec
import pytest

from crusades import hparams, nvml
from crusades.bench.referee.models import load_reference, read_config

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Whatever judges comes first: a judge takes every process on its card that is not its own for a stranger's, and pytest's is
    one as soon as another test has used the card."""
    items.sort(key=lambda item: HERE in item.path.parents and "found" not in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def library():
    """The driver's, on a machine with a card."""
    if not nvml.devices():
        pytest.skip("no NVIDIA card answers here")
    return nvml.load()


@pytest.fixture
def small(tmp_path):
    """A reference of 200 MB on the card, with anchors: large enough that copies beside other work overlap it."""
    profile = hparams.load(HERE.parent.parent / "hparams.toml").profile("tiny")
    config = {**read_config("qwen2.5-3b"), "num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 50_000}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config))
    model = msgspec.structs.replace(profile.model, config=str(path), dtype="bfloat16")
    audit = msgspec.structs.replace(profile.audit, coordinates=20_000, reference_steps=1, anchored_runs=2)
    reference = load_reference(model, "cuda", None)
    yield reference, msgspec.structs.replace(profile, model=model, audit=audit)
    reference.memory.close()
