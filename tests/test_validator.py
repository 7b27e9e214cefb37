"""The entry point: flags, what is refused before anything starts, and exit codes that systemd acts on."""

import argparse
import dataclasses
import errno
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio
from daemon_house import House

from crusades import hparams, validator
from crusades.bench import entries
from crusades.daemon import run
from crusades.errors import ChainError, ConfigError, MustNotRestart, StateLocked, StoreError

FLAGS = ["--accept-empty-state", "--accept-foreign-weights", "--help", "--hparams", "--json-logs", "--netuid", "--network", "--state-dir", "--version",
         "--wallet-hotkey", "--wallet-name", "--wallet-path", "--wallet.hotkey", "--wallet.name", "--wallet.path", "--web", "-h"]  # fmt: skip


def test_the_list_of_flags_is_frozen():
    assert sorted(flag for action in validator.parser()._actions for flag in action.option_strings) == FLAGS


@pytest.mark.parametrize("spelling", ["--wallet.name", "--wallet-name"])
def test_both_spellings_of_the_wallet_flags(spelling):
    assert validator.parser().parse_args([spelling, "w"]).wallet_name == "w"


def arguments(**changes):
    return argparse.Namespace(**{"network": "finney", "netuid": 3, "web": "", **changes})


def test_the_subnet_is_never_guessed_but_on_dev():
    with pytest.raises(ConfigError, match="--netuid"):
        validator.check_arguments(arguments(netuid=None))
    assert validator.check_arguments(arguments(netuid=None, network="dev")) == 1


@pytest.mark.parametrize("wrong", [{"netuid": 0}, {"web": "8080"}, {"web": ":x"}, {"web": "host:99999"}])
def test_wrong_values_are_refused_with_the_flag(wrong):
    with pytest.raises(ConfigError, match="--"):
        validator.check_arguments(arguments(**wrong))


@pytest.mark.parametrize(("argv", "word"), [
    (["--network", "dev", "--hparams", "nowhere.toml"], "nowhere.toml"),
    (["--network", "nonsense", "--netuid", "1"], "nonsense"),
    (["--network", "dev", "--wallet.name", "nobody"], "nobody"),
])
def test_bad_input_is_exit_code_2_and_one_plain_line(argv, word, capfd):
    assert validator.main(argv) == 2
    said = capfd.readouterr().err
    assert word in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("error", "code"), [
    (ConfigError(""), 2),
    (StateLocked(""), 2),
    (MustNotRestart(""), 3),
    (StoreError("the disk is full"), 1),
    (ChainError(""), 1),
    (ValueError(""), 1),
    (KeyboardInterrupt(), 0),
    (BaseExceptionGroup("", [BaseExceptionGroup("", [MustNotRestart("")]), ValueError("")]), 3),
    (BaseExceptionGroup("", [ConfigError(""), ValueError("")]), 1),
])
def test_exit_codes(error, code):
    assert validator.exit_code(error) == code


def test_a_bug_leaves_a_traceback_and_a_stated_reason_does_not(caplog):
    assert validator.report(ExceptionGroup("", [ValueError("oops")])) == 1
    assert caplog.records[-1].exc_info
    caplog.clear()
    assert validator.report(ExceptionGroup("", [StoreError("the disk is full")])) == 1
    assert [record.exc_info for record in caplog.records] == [None]


def test_the_state_directory_is_systemds_or_one_per_subnet(monkeypatch, tmp_path):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert validator.default_state_dir("finney", 3) == tmp_path
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert validator.default_state_dir("finney", 3) != validator.default_state_dir("finney", 4)
    assert validator.default_state_dir("ws://127.0.0.1:9944", 3).parent == tmp_path / "crusades"


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state-dir"):
        validator.open_state_dir(tmp_path / "file" / "state")


def test_a_disk_that_is_full_at_the_start_is_tried_again(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StoreError, match="free its disk") as caught:
        validator.open_state_dir(tmp_path)
    assert validator.exit_code(caught.value) == validator.BUG


def test_a_wall_that_is_down_stops_the_start_and_says_what_mends_it(monkeypatch):
    from crusades.sandbox import doctor

    def walls(down):
        monkeypatch.setattr(doctor, "check_walls", lambda **_: [SimpleNamespace(name="bubblewrap", ok=not down, mandatory=True, message="not found", fix="apt-get install bubblewrap"),
                                                                SimpleNamespace(name="cgroup", ok=False, mandatory=False, message="none", fix="x")])

    walls(down=False)
    validator.must_have_walls()
    walls(down=True)
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        validator.must_have_walls()


@pytest.mark.parametrize("flag", ["--state-dir", "--wallet.path"])
def test_what_submissions_would_see_refuses_the_start(flag, tmp_path):
    places = {"--state-dir": tmp_path, "--wallet.path": tmp_path} | {flag: Path(sys.base_prefix) / "lib"}
    with pytest.raises(ConfigError, match=flag):
        validator.must_hide(hparams.load(), places["--state-dir"], places["--wallet.path"])


# ---------------------------------------------------------------------------------------------------- the cache


def fetched(profile="fetched"):
    """Settings whose profile, the competition's and the dev one, needs a model and tokens that `crusades setup` fetches."""
    loaded, replace = hparams.load(), msgspec.structs.replace
    tiny = loaded.profile("tiny")
    needy = replace(tiny, model=hparams.Model(hub="owner/net"), data=hparams.Data(source="hub", dataset="owner/text"))
    return replace(loaded, profiles={**loaded.profiles, profile: needy}, competition=replace(loaded.competition, profile=profile))


def fill(folder):
    """An entry as `crusades setup` leaves it, but for checksums, which nobody is to compare here."""
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"1234")
    (folder / entries.MANIFEST).write_bytes(msgspec.json.encode(entries.Entry(what="it", files={"file": (4, "")})))
    return folder / "file"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folders of model and tokens in an empty cache."""
    monkeypatch.setenv("CRUSADES_CACHE", str(tmp_path / "cache"))
    profile = fetched().profile()
    return entries.model_folder(profile.model, None), entries.data_folder(profile.data, profile.model, None)


@pytest.mark.parametrize("lacks", [0, 1])
def test_a_cache_that_lacks_something_stops_the_start_and_says_what_fills_it(cached, lacks, monkeypatch):
    monkeypatch.setattr(entries, "digest", None)  # gigabytes are not read here
    for folder in cached[:lacks]:
        fill(folder)
    with pytest.raises(ConfigError, match=f"lacks {('model owner/net', 'the tokens of owner/text')[lacks]} .*; run `crusades setup --profile fetched`"):
        validator.must_have_cache(fetched(), ("fetched",))
    for folder in cached[lacks:]:
        file = fill(folder)
    validator.must_have_cache(fetched(), ("fetched",))
    file.write_bytes(b"12")
    with pytest.raises(ConfigError, match="run `crusades setup --profile fetched --verify`"):
        validator.must_have_cache(fetched(), ("fetched",))


def test_without_its_cache_the_command_ends_as_a_wrong_setting_does(cached, tmp_path, monkeypatch, capfd):
    settings = fetched()
    monkeypatch.setattr(hparams, "load", lambda _: settings)
    assert validator.main(["--network", "finney", "--netuid", "1", "--state-dir", str(tmp_path / "state")]) == 2
    said = capfd.readouterr().err
    assert "`crusades setup --profile fetched`" in said
    assert "Traceback" not in said


def test_where_only_the_node_knows_the_profile_no_other_ones_cache_is_asked_for(cached):
    settings = fetched()
    validator.must_have_cache(settings, validator.profiles_of("ws://127.0.0.1:9944", settings))
    with pytest.raises(ConfigError, match="crusades setup"):
        validator.must_have_cache(settings, validator.profiles_of("finney", settings))


@pytest.mark.parametrize("is_dev", [True, False])
async def test_once_the_node_has_said_it_the_cache_of_its_profile_is(cached, tmp_path, monkeypatch, is_dev):
    """The dev profile needs none: then everything goes on."""
    house = House(tmp_path)
    house.settings, house.chain.is_dev = fetched(), is_dev

    @asynccontextmanager
    async def chain(*_args, **_kwargs):
        yield house.chain

    async def check():
        return SimpleNamespace(is_dev=is_dev)

    async def served(*_args, **_kwargs):
        raise StoreError("as far as it should come")

    monkeypatch.setattr("crusades.chain.open_chain", chain)
    monkeypatch.setattr("crusades.daemon._load_early", lambda: None)
    monkeypatch.setattr("crusades.daemon.serve", served)
    monkeypatch.setattr(house.chain, "check", check)
    config = dataclasses.replace(house.config(trio.Event()), network="ws://node.example")
    with pytest.raises(ExceptionGroup) as caught:
        await run(config)
    [error] = validator.leaves(caught.value)
    assert (type(error), "--profile fetched" in str(error)) == ((StoreError, False) if is_dev else (ConfigError, True))


def test_looking_into_the_cache_takes_no_torch():
    code = "import sys; from crusades import hparams, validator; validator.must_have_cache(hparams.load(), ('tiny',)); print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_systemd_credential_is_linked_to_where_the_sdk_looks(tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "hotkey").write_text("{}")
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    for _ in range(2):  # a restart finds its own link
        assert validator.link_credential(tmp_path / "wallets", "w", "h", environment)
    assert (tmp_path / "wallets" / "w" / "hotkeys" / "h").read_text() == "{}"
    assert not validator.link_credential(tmp_path / "wallets", "w", "h", {})


def test_a_second_instance_is_refused(tmp_path):
    from crusades.store_lock import locked

    with locked(tmp_path), pytest.raises(StateLocked, match="in use by process"), locked(tmp_path):
        pass
