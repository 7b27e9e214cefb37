"""Progress, stalls, systemd and the messages to people: deterministic, with a clock of our own and sockets of this machine."""

import json
import socket
import subprocess
import sys
import time

import httpx
import pytest
import trio

from crusades.alerts import REPEAT, Alert, Facts, Telling, alerts
from crusades.board import Board
from crusades.records import SlotView
from crusades.watchdog import Health, Stalls, forget_systemd, heartbeat, notify, status_line, tell, watchdog_interval

# ------------------------------------------------------------------------------------------------ progress


async def test_a_subsystem_is_late_only_past_its_own_deadline(autojump_clock):
    health = Health()
    health.expect("poller", 10.0)
    health.expect("slot cpu", 100.0)
    await trio.sleep(11)
    assert list(health.late()) == ["poller"]
    health.progress("poller")
    assert health.late() == {}


async def test_a_long_step_announces_its_own_deadline(autojump_clock):
    health = Health()
    health.progress("slot cpu", "run 2 of 5", deadline=500.0)
    await trio.sleep(400)
    assert health.late() == {}
    await trio.sleep(101)
    assert "run 2 of 5" in health.late()["slot cpu"]


async def test_a_retired_subsystem_is_never_late(autojump_clock):
    health = Health()
    health.expect("slot cuda:1", 1.0)
    health.retire("slot cuda:1")
    await trio.sleep(10)
    assert health.late() == {}


def test_a_step_that_holds_the_loop_is_named():
    now, cpu = [0.0], [0.0]
    seen = []
    stalls = Stalls(lambda name, took, computed: seen.append((name.rpartition(".")[2], took, computed)), clock=lambda: now[0], cpu_clock=lambda: cpu[0])

    async def hog():
        await trio.lowlevel.checkpoint()
        now[0] += 0.2
        cpu[0] += 0.15
        await trio.lowlevel.checkpoint()

    trio.run(hog, instruments=[stalls])
    assert seen == [("hog", pytest.approx(0.2), pytest.approx(0.15))]
    assert stalls.take_longest() == pytest.approx(0.2)
    assert stalls.take_longest() == 0.0


# ------------------------------------------------------------------------------------------------ systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_every_word(tmp_path, abstract):
    name = f"@crusades-test-{time.monotonic_ns()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(5)
        assert notify("READY=1\nSTATUS=block 7", {"NOTIFY_SOCKET": name})
        assert listener.recv(1000) == b"READY=1\nSTATUS=block 7"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/nobody/listens/here"}])
def test_without_systemd_nothing_happens(environment):
    assert not notify("READY=1", environment)


def test_the_watchdog_is_fed_twice_per_interval_and_only_if_it_asks_us():
    assert watchdog_interval({"WATCHDOG_USEC": "60000000"}) == 30.0
    assert watchdog_interval({}) is None
    assert watchdog_interval({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, pid=7) is None


def test_children_never_learn_how_to_speak_to_systemd():
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "PATH": "/bin"}
    assert forget_systemd(environment) == {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1"}
    assert environment == {"PATH": "/bin"}


def test_the_status_line_says_what_a_person_wants_first():
    board = Board(block=812, slots={"cpu": SlotView(name="cpu", device="cpu", state="running", detail="run 2 of 5")})
    assert status_line(board, "weights 0.4 tempos old", {"queued": 3}) == "block 812 · weights 0.4 tempos old · 3 queued · evaluating cpu run 2 of 5"
    board.slots["cpu"] = SlotView(name="cpu", device="cpu", state="warming", detail="preparing exams")
    assert status_line(board, "", {}).endswith("warming cpu")
    board.problems["chain"] = "node down"
    assert status_line(board, "", {}).startswith("PROBLEM chain: node down")


def test_a_process_that_hangs_at_its_exit_says_where_and_ends():
    """Python waits at its exit for threads that are no daemons, as asyncio's are that ask for addresses."""
    program = """
import threading
from crusades.watchdog import leave_within
leave_within(0.2)
threading.Thread(target=threading.Event().wait, name="stuck").start()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "threading.py" in ended.stderr


# ------------------------------------------------------------------------------------------------ people


async def test_an_alert_is_posted_and_a_refusal_or_a_dead_host_is_only_logged():
    posted = []

    def answer(request):
        if request.url.host == "down.example":
            raise httpx.ConnectError("refused")
        posted.append((request.method, json.loads(request.content or b"null")))
        return httpx.Response(204 if request.url.path == "/ok" else 500)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        assert await tell("https://hook.example/ok", "weights are old", client)
        assert not await tell("https://hook.example/broken", "x", client)
        assert not await tell("https://down.example/", "x", client)
        assert await heartbeat("https://hook.example/ok", client)
    assert posted[0] == ("POST", {"text": "weights are old", "content": "weights are old"})
    assert posted[-1] == ("GET", None)


def test_nothing_known_raises_no_alert():
    assert alerts(Facts()) == []


@pytest.mark.parametrize(("facts", "key", "words"), [
    (Facts(weights_age_tempos=2.5, weights_cause="no validator permit"), "weights-old", "no validator permit"),
    (Facts(weights_equal=False), "weights-differ", "nothing that we asked for"),
    (Facts(slots_out={"cuda:1": "its control run failed"}), "slot-cuda:1", "control run"),
    (Facts(devices_problem="profile big needs an NVIDIA card and none answers"), "no-device", "none answers"),
    (Facts(registered=False), "not-registered", "no uid"),
    (Facts(registered=True, permit=False), "no-permit", "more stake"),
    (Facts(disk_free_bytes=1 << 30, disk_low_bytes=2 << 30), "disk-low", "1.0 GiB"),
    (Facts(unread_seconds=500.0, chain_problem="node down"), "chain-behind", "node down"),
    (Facts(backup_age_seconds=60 * 3600.0, backup_interval_seconds=24 * 3600.0), "backup-old", "60 h"),
    (Facts(backup_age_seconds=60 * 3600.0, backup_ever=False), "backup-old", "there is no backup"),
    (Facts(late={"poller": "no progress for 90 s"}), "late-poller", "90 s"),
])  # fmt: skip
def test_each_alert_carries_its_cause(facts, key, words):
    found, = alerts(facts)
    assert found.key == key
    assert words in found.text


def say(telling, current, now, *, arrives=True):
    """What is due, and told if it arrives."""
    messages = telling.due(current, now)
    for message in messages if arrives else ():
        telling.told(message, now)
    return [message.text for message in messages]


def test_an_alert_is_told_once_repeated_rarely_and_ended():
    telling = Telling()
    alert = Alert(key="disk-low", text="1 GiB free")
    assert say(telling, [alert], 0.0) == ["1 GiB free"]
    assert say(telling, [alert], REPEAT - 1) == []
    assert say(telling, [alert], REPEAT) == ["1 GiB free"]
    assert say(telling, [], REPEAT + 1) == ["over: 1 GiB free"]
    assert say(telling, [], REPEAT + 2) == []


def test_an_alert_that_did_not_arrive_stays_due():
    telling = Telling()
    alert = Alert(key="disk-low", text="1 GiB free")
    assert say(telling, [alert], 0.0, arrives=False) == ["1 GiB free"]
    assert say(telling, [alert], 60.0) == ["1 GiB free"]
    assert say(telling, [], 120.0, arrives=False) == ["over: 1 GiB free"]
    assert say(telling, [], 180.0) == ["over: 1 GiB free"]


def test_nobody_hears_the_end_of_what_he_never_heard_of():
    telling = Telling()
    say(telling, [Alert(key="disk-low", text="1 GiB free")], 0.0, arrives=False)
    assert say(telling, [], 60.0) == []
