"""The pieces of the demo that need no other process."""

import os
import socket
import tomllib
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from crusades import demo_parts as parts
from crusades import hparams
from crusades.demo import DemoConfig, run_demo
from crusades.errors import ConfigError, CrusadesError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_the_manifest_names_every_example_once():
    listed = [e.file for e in parts.read_manifest(EXAMPLES)]
    there = {str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.py")}
    assert sorted(listed) == sorted(there)


def test_the_demo_shows_three_honest_ways_and_five_kinds_of_cheat_at_least():
    shown = [e for e in parts.read_manifest(EXAMPLES) if e.demo]
    honest = [e for e in shown if e.expected == "accepted"]
    cheats = [e for e in shown if e.expected == "rejected"]
    assert len(honest) >= 3
    assert "baseline" in [e.name for e in honest]
    assert len({e.rules for e in cheats}) >= 5
    assert all(e.rules for e in cheats), "a cheat without an expected rule proves little"


def test_a_manifest_that_is_missing_or_wrong_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.toml"):
        parts.read_manifest(tmp_path)
    (tmp_path / "manifest.toml").write_text('[[example]]\nname = "x"\nfil = "x.py"\n')
    with pytest.raises(ConfigError, match=r"manifest\.toml"):
        parts.read_manifest(tmp_path)


def test_settings_written_as_toml_are_read_back_equal(tmp_path):
    fast = parts.fast_settings(hparams.load(ROOT / "hparams.toml"), "tiny")
    path = tmp_path / "hparams.toml"
    path.write_text(parts.to_toml(msgspec.to_builtins(fast)))
    assert hparams.load(path) == fast


def test_toml_of_awkward_names_and_values():
    value = {"a": 'quote " and \\ and \n', "b": [1, 2.5, 1e-05], "c": {"x.y": {"on": True, "empty": {}}}}
    assert tomllib.loads(parts.to_toml(value)) == value


def test_fast_settings_change_the_pace_and_nothing_that_a_verdict_depends_on():
    base = hparams.load(ROOT / "hparams.toml")
    fast = parts.fast_settings(base, "tiny")
    assert (fast.profiles, fast.scoring, fast.sandbox, fast.fetch) == (base.profiles, base.scoring, base.sandbox, base.fetch)


async def test_the_file_host_serves_its_files_and_nothing_else():
    with parts.file_host({"cheats/x.py": b"x = 1\n"}) as url:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/cheats/x.py")).content == b"x = 1\n"
            assert (await client.get(f"{url}/../etc/passwd")).status_code == 404
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(url)


def test_a_free_address_is_free_and_a_given_one_is_kept():
    assert parts.free_address("127.0.0.1:4321") == "127.0.0.1:4321"
    host, _, port = parts.free_address("127.0.0.1:0").rpartition(":")
    with socket.socket() as probe:
        probe.bind((host, int(port)))


@pytest.mark.parametrize("wanted", ["nonsense", "127.0.0.1:99999", "no-such-host.invalid:0", "192.0.2.1:0", "[::1:0", "::1:0", "[::1", ":0"])
def test_where_nothing_can_listen_is_the_users_mistake(wanted):
    with pytest.raises(ConfigError, match="--web"):
        parts.free_address(wanted)


def test_an_address_of_version_6_keeps_its_brackets():
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    host, _, port = parts.free_address("[::1]:0").rpartition(":")
    assert (host, int(port) > 0) == ("[::1]", True)


def test_a_folder_of_an_earlier_demo_is_not_used_again(tmp_path):
    (tmp_path / "state").mkdir()
    with pytest.raises(ConfigError, match="earlier demo"):
        run_demo(DemoConfig(state_dir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_profile_that_judges_nothing_is_no_demo(tmp_path):
    before, _, rest = (Path(__file__).parent.parent / "hparams.toml").read_text().partition("[profiles.tiny.limits]\n")
    toothless = tmp_path / "hparams.toml"
    toothless.write_text(before + "[profiles.tiny.limits]\n\n" + rest.partition("\n\n")[2])
    with pytest.raises(ConfigError, match=r"profiles\.tiny\.limits is empty"):
        run_demo(DemoConfig(state_dir=tmp_path / "demo", hparams=toothless))


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Starts a stand-in for the validator: `python -m crusades.validator` of a package made here."""

    def start(code):
        package = tmp_path / "crusades"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "validator.py").write_text(code)
        return parts.ValidatorProcess([], {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}, tmp_path / "log")

    return start


async def test_a_validator_that_ends_is_noticed_with_the_last_of_its_log(process):
    validator = process("import sys; print('no such wallet'); sys.exit(2)")
    await trio.to_thread.run_sync(validator._process.wait)
    with pytest.raises(CrusadesError, match=r"exit code 2(.|\n)*no such wallet"):
        validator.must_run()
    assert await validator.stop() == 2


async def test_stop_asks_first(process, tmp_path):
    os.mkfifo(tmp_path / "up")
    validator = process(
        "import signal, sys, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).write_bytes(b'')\n"
        "signal.pause()\n"
    )
    await trio.to_thread.run_sync((tmp_path / "up").read_bytes)  # returns when the other side has opened and closed it
    validator.must_run()
    assert await validator.stop() == 7


async def test_stop_kills_what_does_not_listen(process, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "up")
    monkeypatch.setattr(parts, "STOP_PATIENCE", 0.1)
    validator = process(
        "import signal, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).write_bytes(b'')\n"
        "while True: signal.pause()\n"
    )
    await trio.to_thread.run_sync((tmp_path / "up").read_bytes)  # returns when the other side has opened and closed it
    assert await validator.stop() == -9
