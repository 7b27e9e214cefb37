"""The devnet misbehaving on demand, seen from a plain websocket and from the SDK; the control socket; the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from devnet_kit import address, signed
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from crusades.devnet import Devnet, DevnetConfig, run_devnet
from crusades.devnet.__main__ import config_from, main
from crusades.devnet.faults import Fault, Faults
from crusades.devnet.scale import compact, to_hex
from crusades.errors import ConfigError, UsageError

TAO = 10**9
QUIET = 0.2
"""Seconds of silence that count as none ever."""


class Wire:
    """A raw client: one call at a time, answers by id."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._id = 0

    def send(self, method: str, *params: Any) -> int:
        self._id += 1
        self.socket.send(json.dumps({"jsonrpc": "2.0", "id": self._id, "method": method, "params": list(params)}))
        return self._id

    def receive(self, timeout: float = 10) -> Any:
        return json.loads(self.socket.recv(timeout=timeout))

    def ask(self, method: str, *params: Any) -> Any:
        number = self.send(method, *params)
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                return answer["result"] if "result" in answer else answer["error"]

    def is_quiet(self) -> bool:
        try:
            self.receive(QUIET)
        except TimeoutError:
            return True
        return False


@pytest.fixture
def net() -> Iterator[Devnet]:
    with run_devnet(DevnetConfig(sealing="manual", endowed={address("rich"): 10 * TAO}, control_port=0)) as net:
        yield net


@pytest.fixture
def wire(net: Devnet) -> Iterator[Wire]:
    with connect(net.url, close_timeout=1) as socket:
        yield Wire(socket)


def transfer(net: Devnet) -> str:
    return to_hex(signed(net.chain, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO))


# ------------------------------------------------------------------------------------------------ the rules of faults


def test_a_fault_strikes_as_often_as_it_says_after_what_it_skips():
    faults = Faults()
    faults.add(Fault(kind="error", methods=("chain_*",), skip=1, count=2))
    assert [faults.strike(method) is not None for method in ("chain_a", "state_b", "chain_c", "chain_d", "chain_e")] == [False, False, True, True, False]
    assert faults.active() == []
    assert faults.struck == 2


def test_a_fault_without_count_lasts_until_cleared():
    faults = Faults()
    faults.add(Fault(kind="silence", count=None))
    assert all(faults.strike("any") for _ in range(5))
    faults.clear()
    assert faults.strike("any") is None


def test_the_same_rule_can_be_put_in_force_twice():
    faults, rule = Faults(), Fault(kind="drop")
    faults.add(rule)
    faults.add(rule)
    assert [faults.strike("x") is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("bad", [{"count": 0}, {"skip": -1}, {"seconds": -1.0}])
def test_a_fault_that_makes_no_sense_is_refused(bad):
    with pytest.raises(UsageError):
        Faults().add(Fault(kind="slow", **bad))


# ------------------------------------------------------------------------------------------------ answers gone wrong


def test_dropped_connections_end_without_a_close_frame(net, wire):
    net.fault("drop", "chain_getHead")
    wire.send("chain_getHead")
    with pytest.raises(ConnectionClosedError) as caught:
        wire.receive()
    assert caught.value.rcvd is None


def test_closed_connections_end_with_going_away(net, wire):
    net.fault("close", "chain_getHead")
    wire.send("chain_getHead")
    with pytest.raises(ConnectionClosed) as caught:
        wire.receive()
    assert caught.value.rcvd.code == 1001


def test_a_swallowed_call_is_never_answered_and_the_next_one_is(net, wire):
    net.fault("silence", "chain_getHead")
    wire.send("chain_getHead")
    assert wire.is_quiet()
    assert wire.ask("chain_getHead") == net.chain.head.hash


def test_a_slow_answer_lets_later_ones_pass(net, wire):
    net.fault("slow", "chain_getHead", seconds=0.05)
    slow, fast = wire.send("chain_getHead"), wire.send("system_name")
    assert [wire.receive()["id"], wire.receive()["id"]] == [fast, slow]


def test_a_lying_node_answers_what_it_is_told_to(net, wire):
    net.fault("wrong", "chain_getHead", result="0x" + "ab" * 32)
    assert wire.ask("chain_getHead") == "0x" + "ab" * 32
    assert wire.ask("chain_getHead") == net.chain.head.hash


def test_an_error_is_answered_with_its_code(net, wire):
    net.fault("error", code=-32005, message="rate limited")
    assert wire.ask("system_health") == {"code": -32005, "message": "rate limited"}


def test_faults_are_marked_in_the_log(net, wire):
    net.fault("wrong", "system_name", result=1)
    wire.ask("system_name")
    wire.ask("system_name")
    assert [call.fault for call in net.calls if call.method == "system_name"] == ["wrong", None]


# ------------------------------------------------------------------------------------------------ extrinsics gone wrong


def test_an_extrinsic_can_be_taken_and_its_answer_lost(net, wire):
    net.fault("drop", "author_*", carried_out=True)
    wire.send("author_submitAndWatchExtrinsic", transfer(net))
    with pytest.raises(ConnectionClosed):
        wire.receive()
    net.produce_blocks()
    assert net.balance(address("poor")) == TAO


def test_a_dropped_call_that_is_not_carried_out_has_no_effect(net, wire):
    net.fault("drop", "author_*")
    wire.send("author_submitAndWatchExtrinsic", transfer(net))
    with pytest.raises(ConnectionClosed):
        wire.receive()
    net.produce_blocks()
    assert net.balance(address("poor")) == 0


def test_an_extrinsic_can_be_accepted_and_lost(net, wire):
    net.fault("lose", "author_submitExtrinsic")
    assert wire.ask("author_submitExtrinsic", transfer(net)).startswith("0x")
    net.produce_blocks(3)
    assert net.balance(address("poor")) == 0
    assert wire.ask("account_nextIndex", address("rich")) == 1


def test_a_watched_extrinsic_can_be_thrown_out_of_the_pool(net, wire):
    name = wire.ask("author_submitAndWatchExtrinsic", transfer(net))
    assert net.drop_pool() == 1
    told = [wire.receive()["params"] for _ in range(2)]
    assert told == [{"subscription": name, "result": "ready"}, {"subscription": name, "result": "dropped"}]


def test_a_reorganisation_is_told_to_watchers(net, wire):
    wire.ask("author_submitAndWatchExtrinsic", transfer(net))
    net.produce_blocks()
    net.reorganize(1)
    net.produce_blocks()
    told = [wire.receive()["params"]["result"] for _ in range(4)]
    assert [status if isinstance(status, str) else next(iter(status)) for status in told] == ["ready", "inBlock", "retracted", "inBlock"]
    assert told[1] != told[3]


# ------------------------------------------------------------------------------------------------ the node gone wrong


def test_a_mute_node_keeps_the_connection_and_says_nothing(net, wire):
    wire.ask("chain_subscribeNewHeads")
    wire.receive()
    net.mute()
    wire.send("chain_getHead")
    net.produce_blocks()
    assert wire.is_quiet()
    net.mute(False)
    net.produce_blocks()
    assert wire.receive()["method"] == "chain_newHead"


def test_a_node_that_vanishes_comes_back_on_the_same_port_with_its_blocks(net, wire):
    url = net.url
    net.vanish()
    with pytest.raises(ConnectionClosed):
        wire.receive()
    with pytest.raises(OSError, match="refused"):
        connect(url)
    net.produce_blocks(3)
    net.appear()
    with connect(url) as socket:
        assert Wire(socket).ask("chain_getHead") == net.chain.head.hash


def test_pruned_state_is_refused_until_the_fault_is_cleared(net, wire):
    net.produce_blocks(20)
    old = net.chain.ledger[3].hash
    key = to_hex(net.chain.state.key("System", "Number"))
    net.prune(5)
    assert "State already discarded" in wire.ask("state_getStorage", key, old)["message"]
    assert wire.ask("chain_getHeader", old)["number"] == "0x3"
    net.clear_faults()
    assert wire.ask("state_getStorage", key, old) == "0x03000000"


def test_an_upgrade_is_seen_and_old_blocks_keep_their_version(net, wire):
    net.produce_blocks(2)
    wire.ask("state_subscribeRuntimeVersion")
    assert wire.receive()["params"]["result"]["specVersion"] == 461
    net.upgrade("TimelockedWeightCommits")
    assert wire.receive()["params"]["result"]["specVersion"] == 462
    assert wire.ask("state_getRuntimeVersion")["specVersion"] == 462
    assert wire.ask("state_getRuntimeVersion", net.chain.ledger[1].hash)["specVersion"] == 461
    assert wire.ask("state_getRuntimeVersion", net.chain.head.hash)["specVersion"] == 462
    net.produce_blocks()
    assert wire.ask("state_getRuntimeVersion", net.chain.head.hash)["specVersion"] == 462
    name = b"TimelockedWeightCommits"
    assert (compact(len(name)) + name).hex() not in wire.ask("state_getMetadata")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", -32700),
        ("7", -32600),
        ('{"id": 1}', -32600),
        ('{"id": 1, "method": "nothing_such"}', -32601),
        ('{"id": 1, "method": "chain_getHead", "params": {"a": 1}}', -32602),
        ('{"id": 1, "method": "state_getStorage", "params": []}', -32602),
        ('{"id": 1, "method": "state_getStorage", "params": ["0xzz"]}', -32602),
        ('{"id": 1, "method": "state_getStorage", "params": ["0x00", "0x1234"]}', 4003),
        ('{"id": 1, "method": "state_call", "params": ["No_such", "0x"]}', 4003),
        ('{"id": 1, "method": "author_submitExtrinsic", "params": ["0x00"]}', 1002),
        ('{"id": 1, "method": "crusades_oracle", "params": ["0x00"]}', -32602),
    ],
)
def test_nonsense_is_answered_with_an_error(net, wire, frame, code):
    wire.socket.send(frame)
    assert wire.receive()["error"]["code"] == code
    assert wire.ask("system_name") == "crusades-devnet"


def test_batches_are_answered_as_batches(net, wire):
    wire.socket.send(json.dumps([{"id": number, "method": "system_name"} for number in (1, 2)]))
    assert [row["id"] for row in wire.receive()] == [1, 2]


# ------------------------------------------------------------------------------------------------ the SDK meets them


@pytest.fixture
def sdk(net: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    sub = bt.Subtensor(net.url)
    sub.connect()
    yield sub
    sub.close()


def test_the_sdk_survives_an_abrupt_drop(net, sdk):
    net.fault("drop", "chain_getHeader")
    assert sdk.block == 0
    assert net.faults.struck == 1


def test_the_sdk_sees_pruned_state_as_such(net, sdk):
    net.produce_blocks(20)
    net.prune(5)
    with pytest.raises(Exception, match="discarded"):
        sdk.balances.get(address("rich"), block=3)


# ------------------------------------------------------------------------------------------------ the control socket


class Remote:
    """A client of the control socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._lines = self._socket.makefile("rb")

    def send(self, line: bytes) -> Any:
        self._socket.sendall(line + b"\n")
        answer = self._lines.readline()
        return json.loads(answer) if answer else None

    def __call__(self, method: str, **params: Any) -> Any:
        answer = self.send(json.dumps({"id": 1, "method": method, "params": params}).encode())
        return answer["result"] if "result" in answer else answer["error"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def remote(net: Devnet) -> Iterator[Remote]:
    remote = Remote(net.control_port)
    yield remote
    remote.close()


def test_the_control_socket_makes_blocks_and_registers(net, remote):
    assert remote("produce_blocks", count=3) == 3
    assert remote("register", netuid=1, hotkey=address("m1"), permit=True) == 1
    assert remote("fund", ss58=address("poor"), rao=5) is None
    assert remote("balance", ss58=address("poor")) == 5
    assert remote("set_hyperparameter", netuid=1, item="Tempo", value=7) is None
    assert net.get("Tempo", 1) == 7
    assert remote("info")["block"] == 3


def test_the_control_socket_injects_and_clears_faults(net, remote, wire):
    assert remote("fault", kind="wrong", methods=["system_name"], result="liar", count=None) is None
    assert [row["kind"] for row in remote("faults")] == ["wrong"]
    assert wire.ask("system_name") == "liar"
    remote("clear_faults")
    assert wire.ask("system_name") == "crusades-devnet"


def test_the_control_socket_outlives_the_node_it_takes_away(net, remote):
    remote("vanish")
    with pytest.raises(OSError, match="refused"):
        connect(net.url)
    remote("appear")
    with connect(net.url) as socket:
        assert Wire(socket).ask("system_name") == "crusades-devnet"


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("stop", {}, "no method"),
        ("_log", {}, "no method"),
        ("produce_blocks", {"counts": 3}, "unexpected keyword"),
        ("register", {"netuid": 9, "hotkey": "x"}, "no subnet 9"),
        ("fault", {"kind": "sulk"}, "Invalid enum value"),
        ("fault", {"kind": "drop", "extra": 1}, "unknown field"),
        ("upgrade", {"hidden": ["NoSuchThing"]}, "declares no NoSuchThing"),
    ],
)
def test_the_control_socket_explains_what_is_wrong(remote, method, params, message):
    assert message in remote(method, **params)
    assert remote("info")["block"] == 0


def test_the_control_socket_hangs_up_on_a_browser(remote):
    assert remote.send(b"POST / HTTP/1.1") is None


# ------------------------------------------------------------------------------------------------ the command


def start(*flags: str, **environment: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "crusades.devnet", "--port", "0", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def finish(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    return errors


def test_the_command_listens_says_what_it_is_and_keeps_its_state(tmp_path: Path):
    flags = ("--hold", "--control-port", "0", "--subnet", "4", "--state", str(tmp_path / "chain"), "--validator", f"4:{address('v')}:{address('c')}")
    process, facts = start(*flags)
    assert (facts["block"], facts["netuids"]) == (0, [4])
    assert "no real chain" in facts["notice"]
    remote = Remote(facts["control_port"])
    assert remote("produce_blocks", count=5) == 5
    assert remote("uid", netuid=4, hotkey=address("v")) == 1
    remote.close()
    assert "no real chain" in finish(process)

    process, again = start(*flags)
    assert (again["block"], again["genesis"]) == (5, facts["genesis"])
    remote = Remote(again["control_port"])
    remote("produce_blocks", count=2)
    remote.close()
    process.kill()
    process.communicate(timeout=20)

    process, after_kill = start(*flags)
    assert after_kill["block"] == 7
    finish(process, signal.SIGINT)


def test_blocks_come_by_the_clock():
    process, facts = start("--block-time", "0.02")
    with connect(facts["url"]) as socket:
        wire = Wire(socket)
        wire.ask("chain_subscribeNewHeads")
        numbers = [int(wire.receive()["params"]["result"]["number"], 16) for _ in range(4)]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    finish(process)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "loopback only"),
        (["--subnet", "1", "--subnet", "1"], "twice"),
        (["--state", "/nonexistent/dir/chain"], "cannot open the state file"),
        (["--log", "/nonexistent/dir/log"], "cannot write the log"),
        (["--block-time", "0.001"], "too short"),
        (["--register", "1:nobody"], "no SS58 address"),
        (["--fund", "x"], "SS58=TAO"),
        (["--port", "99999"], "<= 65535"),
        (["--fund", "nobody=1"], "no SS58 address"),
        (["--validator", "7"], "NETUID:HOTKEY"),
    ],
)
def test_arguments_that_cannot_work_are_explained(flags, message, capsys):
    assert main(["--port", "0", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_configuration_beyond_its_bounds_is_refused():
    with pytest.raises(ConfigError, match="too short"):
        Devnet(DevnetConfig(block_time=0.001))


def test_flags_become_the_configuration():
    import argparse

    from crusades.devnet.__main__ import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = config_from(parser.parse_args(["--subnet", "2", "--subnet", "5", "--tempo", "9", "--commit-reveal", "--instant", "--fund", f"{address('rich')}=1.5"]))
    assert [(subnet.netuid, subnet.tempo, subnet.commit_reveal) for subnet in config.subnets] == [(2, 9, True), (5, 9, True)]
    assert (config.sealing, config.endowed) == ("instant", {address('rich'): 1_500_000_000})


def test_a_stalled_node_makes_no_blocks_by_the_clock():
    with run_devnet(DevnetConfig(block_time=0.02)) as net, connect(net.url) as socket:
        wire = Wire(socket)
        net.stall()
        wire.ask("chain_subscribeNewHeads")
        while not wire.is_quiet():
            pass
        net.stall(False)
        assert wire.receive()["method"] == "chain_newHead"


def test_the_page_about_devnet_names_every_command_flag_and_fault():
    import argparse
    from typing import get_args

    from crusades.devnet.__main__ import add_arguments
    from crusades.devnet.control import METHODS
    from crusades.devnet.faults import Kind

    page = (Path(__file__).parent.parent / "docs" / "devnet.md").read_text()
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    flags = [action.option_strings[0] for action in parser._actions]
    names = [*METHODS, *flags, *get_args(Kind), "crusades_oracle", "crusades_info", "upgrade", "vanish", "appear", "close_connections", "clear_faults"]
    assert [name for name in names if f"`{name}" not in page] == ["--host"]
