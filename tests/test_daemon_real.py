"""The daemon as a process of its own, on a dev chain, with the real store and real downloads; the judge is a stand-in but for one story."""

import json
import os
import signal
import socket

import httpx
import pytest
import trio
from kill_lab import ROOT, SOME, ended, kill_story, open_lab, real_story, referee_of


@pytest.fixture
async def systemd(tmp_path, nursery):
    """Everything that is said to the notify socket of a unit, as it comes."""
    told = []
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        await listener.bind(str(tmp_path / "notify"))

        async def listen():
            while True:
                told.append((await listener.recv(4096)).decode())

        nursery.start_soon(listen)
        yield told
        nursery.cancel_scope.cancel()


async def test_one_submissions_whole_life_for_real(tmp_path, systemd):
    """Sealed on a real (dev) chain → revealed → downloaded → queued → running → scored → weights on chain, then a staged stop;
    and systemd hears of it."""
    async with open_lab(tmp_path) as lab:
        lab.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        await lab.submit(0)
        with lab.daemon() as process:
            await lab.until_judged(60.0)
            process.send_signal(signal.SIGTERM)
            await ended(process)
        assert process.returncode == 0, (lab.folder / "daemon.log").read_text()
        lab.check()
        steps = [status for (status,) in lab.rows("SELECT status FROM transitions ORDER BY n")]
        assert steps[-5:] == ["fetched", "checked", "queued", "running", "scored"]
        uid = lab.net.uid(1, lab.rows("SELECT hotkey FROM submissions")[0][0])
        validator = lab.net.uid(1, lab.validator)
        assert lab.net.weights(1, validator) == {uid: 65535}
        told = systemd
        assert told.index("READY=1") < told.index("STOPPING=1")
        assert told.count("READY=1") == 1
        assert "WATCHDOG=1" in told
        assert any(line.startswith("STATUS=block") for line in told)


@pytest.mark.slow
async def test_twenty_kills_lose_nothing_and_judge_nothing_twice(tmp_path):
    async with open_lab(tmp_path) as lab:
        await kill_story(lab, kills=20, submissions=12, seed=1)
        assert lab.kills == 20


@pytest.mark.kernel
@pytest.mark.slow
async def test_a_referee_that_is_killed_costs_an_attempt_and_nothing_else(tmp_path):
    """A new one is started, our own baseline proves the slot, and the submission is judged."""
    async with open_lab(tmp_path, real_judge=True) as lab:
        await lab.submit_file(0, (ROOT / "examples" / "baseline.py").read_bytes(), SOME)
        with lab.daemon() as process:
            with trio.fail_after(180):
                while not lab.rows("SELECT 1 FROM runs"):  # the database is another process's
                    assert process.poll() is None, (lab.folder / "daemon.log").read_text()
                    await trio.sleep(0.05)
            os.kill(referee_of(process.pid), signal.SIGKILL)
            await lab.until_judged(300)
            process.send_signal(signal.SIGTERM)
            await ended(process)
        assert lab.rows("SELECT status, attempts, faults FROM submissions") == [("scored", 2, 1)]
        assert [json.loads(reason)["code"] for (reason,) in lab.rows("SELECT reason FROM transitions WHERE reason IS NOT NULL")] == [2002]
        log = (lab.folder / "daemon.log").read_text()
        assert "control run: accepted" in log
        assert "out of service" not in log


@pytest.mark.kernel
@pytest.mark.slow
async def test_three_kills_amid_real_evaluations_keep_runs_and_leave_no_process(tmp_path):
    async with open_lab(tmp_path, real_judge=True) as lab:
        await real_story(lab, kills=3, seed=1)
        assert lab.kills == 3


async def test_no_secret_of_ours_is_in_the_log_the_state_or_an_answer(tmp_path):
    """The hotkey file's secrets, the hub's token and the addresses of webhook and heartbeat, searched for in everything that
    a daemon with real wallet, chain and downloads leaves behind, its last error included."""
    async with open_lab(tmp_path) as lab:
        lab.environment = {"HF_TOKEN": "hub-token-of-the-operator", "BT_WALLET_PASSWORD": "password-of-the-operator"}
        lab.webhook, lab.heartbeat = "http://127.0.0.1:9/hooks/path-of-the-webhook", "http://127.0.0.1:9/path-of-the-heartbeat"
        await lab.submit(0)
        with lab.daemon() as process:
            await lab.until_judged(60.0)
            url = lab.address_of_web()
            async with httpx.AsyncClient(timeout=30) as client:
                answers = [(await client.get(url + path)).text for path in ("/readyz?verbose", "/metrics", "/api/v1/overview", "/api/v1/weights", "/api/v1/slots", "/api/v1/rules")]
            process.send_signal(signal.SIGTERM)
            await ended(process)
        (lab.state_dir / "crusades.db").write_bytes(b"no database" * 1000)
        with lab.daemon() as process:
            await ended(process)
        assert process.returncode == 1
        keys = json.loads((tmp_path / "wallets" / "validator" / "hotkeys" / "default").read_text())
        secrets = [str(value).removeprefix("0x") for name, value in keys.items() if name in ("privateKey", "secretPhrase", "secretSeed") and value]
        assert len(secrets) >= 2
        secrets += [*lab.environment.values(), "path-of-the-webhook", "path-of-the-heartbeat"]
        left = [(tmp_path / "daemon.log").read_bytes(), *(text.encode() for text in answers), *(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())]
        assert b"could not be delivered" in left[0]
        assert b"Traceback" in left[0]
        assert [secret for secret in secrets if any(secret.encode() in one for one in left)] == []
