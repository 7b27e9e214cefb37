"""The unmodified bittensor SDK against the real socket. Blocks come when an extrinsic does, or when a test asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bittensor as bt
import bittensor_core as core
import pytest
import trio
from devnet_kit import address, key, sealed_fields, weights_payload
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from crusades.devnet import Devnet, DevnetConfig, SubnetConfig, drand, is_dev_genesis, open_devnet, run_devnet
from crusades.devnet.scale import compact, from_hex, to_hex

TAO = 10**9
NETUID = 3


@dataclass
class Bench:
    """A devnet with the SDK connected, and a wallet that is registered as a validator."""

    net: Devnet
    sub: Any
    wallet: Any
    uid: int

    @property
    def hotkey(self) -> str:
        return self.wallet.hotkey.ss58_address

    def commit(self, ciphertext: bytes, reveal_round: int = drand.SEAL_ROUND) -> Any:
        call = bt.calls.Commitments.set_commitment(netuid=NETUID, info=sealed_fields(ciphertext, reveal_round))
        return self.sub.submit_call(call, self.wallet, signer="hotkey")

    def set_weights(self, **weights: Any) -> Any:
        return self.sub.execute(bt.SetWeights(netuid=NETUID, **weights), self.wallet)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for the SDK's files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def bench(home: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Instant blocks; settings of the subnet by indirect parametrisation."""
    wallet = bt.Wallet("owner", "validator", path=str(home / "wallets"))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    subnet = SubnetConfig(netuid=NETUID, **getattr(request, "param", {}))
    config = DevnetConfig(sealing="instant", subnets=(subnet, SubnetConfig(netuid=8)), endowed={wallet.coldkey.ss58_address: 10 * TAO})
    with run_devnet(config) as net:
        uid = net.register(NETUID, wallet.hotkey.ss58_address, wallet.coldkey.ss58_address, permit=True)
        for name in ("m1", "m2", "m3"):
            net.register(NETUID, address(name), wallet.coldkey.ss58_address)
        sub = bt.Subtensor(net.url)
        try:
            yield Bench(net, sub, wallet, uid)
        finally:
            sub.close()


# ------------------------------------------------------------------------------------------------ reading


def test_the_sdk_connects_and_sees_what_chain_this_is(bench):
    bench.net.produce_blocks(5)
    assert bench.sub.block == 5
    assert bench.sub.finalized_block == 3
    assert bench.sub.block_time() == 0.5
    assert {call.error for call in bench.net.calls} == {None}


def test_the_metagraph_shows_the_neurons(bench):
    graph = bench.sub.subnets.metagraph(NETUID)
    assert [n.hotkey for n in graph.neurons][1:3] == [bench.hotkey, address("m1")]
    assert [n.validator_permit for n in graph.neurons] == [False, True, False, False, False]
    assert graph.neurons[1].total_stake.rao == 1000 * TAO
    assert (graph.tempo, graph.num_uids, graph.max_uids) == (20, 5, 256)


def test_neurons_uid_balance_and_hyperparameters_are_read(bench):
    assert [n.uid for n in bench.sub.neurons.all(netuid=NETUID)] == [0, 1, 2, 3, 4]
    assert [n.uid for n in bench.sub.neurons.all(netuid=NETUID, lite=False)] == [0, 1, 2, 3, 4]
    assert bench.sub.read("uid", netuid=NETUID, hotkey_ss58=bench.hotkey) == bench.uid
    assert bench.sub.balances.get(bench.wallet.coldkey.ss58_address).rao == 10 * TAO
    assert bench.sub.read("subnet_hyperparameters", netuid=NETUID)["tempo"] == 20
    assert bench.sub.subnets.metagraph(99) is None


def test_reads_can_be_pinned_to_an_old_block(bench):
    bench.sub.execute(bt.Transfer(dest_ss58=address("poor"), amount_tao=1), bench.wallet)
    assert bench.sub.balances.get(address("poor")).rao == TAO
    assert bench.sub.balances.get(address("poor"), block=0).rao == 0


def test_epoch_status_follows_the_schedule(bench):
    bench.net.produce_blocks(27)
    status = bench.sub.read("epoch_status", netuid=NETUID)
    assert {name: status[name] for name in ("last_epoch_block", "epoch_index", "next_epoch_start_block", "blocks_remaining")} == {
        "last_epoch_block": 20,
        "epoch_index": 1,
        "next_epoch_start_block": 40,
        "blocks_remaining": 13,
    }


def test_several_subnets_live_side_by_side(bench):
    assert sorted(row[0] for row in bench.sub.query_map(bt.storage.SubtensorModule.NetworksAdded, [])) == [NETUID, 8]


def test_a_stream_of_heads_arrives(bench):
    stream = bench.sub.blocks()
    first = next(stream).number
    bench.net.produce_blocks(2)
    assert [next(stream).number, next(stream).number] == [first + 1, first + 2]
    stream.close()


@pytest.mark.slow
def test_a_full_subnet_is_read_in_one_go(bench):
    for number in range(251):
        bench.net.register(NETUID, address(f"n{number}"))
    rows = [(compact(12) + b"https://h/%03d" % number, number) for number in range(4)]
    for number in range(251):
        bench.net.set_reveals(NETUID, address(f"n{number}"), rows)
    graph = bench.sub.subnets.metagraph(NETUID)
    assert graph.num_uids == 256
    assert len(graph.commitments) == 251


# ------------------------------------------------------------------------------------------------ writing


def test_a_transfer_is_included_finalised_and_paid(bench):
    result = bench.sub.execute(bt.Transfer(dest_ss58=address("poor"), amount_tao=1), bench.wallet)
    assert result.success
    assert result.block_hash == bench.net.chain.ledger[1].hash
    assert bench.net.balance(address("poor")) == TAO
    assert bench.net.balance(bench.wallet.coldkey.ss58_address) == 9 * TAO - result.fee.rao


def test_a_burned_registration_gives_a_uid(bench):
    call = bt.calls.SubtensorModule.burned_register(netuid=NETUID, hotkey=address("new"))
    assert bench.sub.submit_call(call, bench.wallet).success
    assert bench.net.uid(NETUID, address("new")) == 5


def test_a_commitment_goes_from_sealed_to_revealed(bench):
    payload = compact(11) + b"https://h/x"
    assert bench.commit(drand.seal(payload)).success
    assert bench.sub.subnets.commitments(NETUID)[bench.hotkey].status == "sealed"
    bench.net.produce_blocks(bench.net.config.reveal_blocks)
    seen = bench.sub.subnets.commitments(NETUID)[bench.hotkey]
    assert (seen.status, seen.value) == ("revealed", "https://h/x")


def test_a_seal_made_by_the_sdk_for_a_real_round_waits_and_opens_by_the_oracle(bench):
    sealed = bt.timelock.encrypt(b"for later", reveal_in="30d")
    assert bench.commit(sealed.encrypted, sealed.reveal_round).success
    bench.net.produce_blocks(10)
    assert bench.sub.subnets.commitments(NETUID)[bench.hotkey].status == "sealed"
    ask(bench, "crusades_oracle", [to_hex(sealed.encrypted), to_hex(compact(9) + b"for later")])
    bench.net.produce_blocks()
    assert bench.sub.subnets.commitments(NETUID)[bench.hotkey].value == "for later"


def test_an_undecryptable_seal_is_seen_as_failed(bench):
    bench.commit(b"\x5a" * 300)
    bench.net.produce_blocks(10)
    assert bench.sub.subnets.commitments(NETUID)[bench.hotkey].status == "failed"


def test_weights_are_set_in_the_clear(bench):
    assert bench.set_weights(weights={2: 0.5, 3: 0.25}).success
    assert bench.net.weights(NETUID, bench.uid) == {2: 65535, 3: 32768}
    assert bench.sub.read("weights", netuid=NETUID)[bench.uid].keys() == {2, 3}


@pytest.mark.parametrize("bench", [{"commit_reveal": True}], indirect=True)
def test_weights_that_the_sdk_seals_open_with_the_oracles_plaintext(bench):
    assert bench.set_weights(weights={2: 0.5, 3: 0.25}).success
    (commits,) = bench.sub.read("timelocked_weight_commits", netuid=NETUID).values()
    plaintext = compact(32) + bytes(bench.wallet.hotkey.public_key) + weights_payload("m1", [2, 3], [65535, 32768])[33:]
    assert ask(bench, "crusades_oracle", [commits[0]["ciphertext"], to_hex(plaintext)]) is True
    while bench.net.get("SubnetEpochIndex", NETUID) < 1:
        assert bench.net.weights(NETUID, bench.uid) == {}
        bench.net.produce_blocks()
    assert bench.net.weights(NETUID, bench.uid) == {2: 65535, 3: 32768}


@pytest.mark.parametrize("bench", [{"weights_rate_limit": 50}], indirect=True)
def test_the_sdk_meets_the_rate_limit_before_and_at_the_pool(bench):
    bench.net.produce_blocks(60)
    assert bench.set_weights(weights={2: 1.0}).success
    with pytest.raises(bt.ChainError) as early:
        bench.set_weights(weights={2: 1.0})
    assert early.value.code == bt.ErrorCode.RATE_LIMITED
    call = bt.calls.SubtensorModule.set_mechanism_weights(netuid=NETUID, mecid=0, dests=[2], weights=[1], version_key=0)
    late = bench.sub.submit_call(call, bench.wallet, signer="hotkey")
    assert (late.success, late.error.code) == (False, bt.ErrorCode.RATE_LIMITED)


@pytest.mark.parametrize("bench", [{"commit_reveal": True}], indirect=True)
def test_a_failed_extrinsic_is_reported_with_its_module_error(bench):
    call = bt.calls.SubtensorModule.set_mechanism_weights(netuid=NETUID, mecid=0, dests=[2], weights=[1], version_key=0)
    result = bench.sub.submit_call(call, bench.wallet, signer="hotkey")
    assert (result.success, result.error.code) == (False, bt.ErrorCode.DISABLED)
    assert result.block_hash is not None


# ------------------------------------------------------------------------------------------------ saying that it is none


def ask(bench: Bench, method: str, params: list[Any]) -> Any:
    """A call that the SDK has no name for, over a socket of our own."""
    with connect(bench.net.url) as socket:
        socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        return json.loads(socket.recv(timeout=10))["result"]


def test_every_door_says_that_this_is_no_real_chain(bench):
    assert "not a real chain" in ask(bench, "system_chain", [])
    assert ask(bench, "system_name", []) == "crusades-devnet"
    assert ask(bench, "system_chainType", []) == "Development"
    assert "no real chain" in ask(bench, "crusades_info", [])["notice"]
    assert is_dev_genesis(ask(bench, "chain_getBlockHash", [0]))


def test_a_web_page_cannot_connect(bench):
    with pytest.raises(InvalidStatus, match="403"), connect(bench.net.url, origin="http://page.example"):
        pass


# ------------------------------------------------------------------------------------------------ in process, and its log


async def test_open_devnet_serves_from_a_thread_of_its_own(home: Path):
    async with open_devnet(DevnetConfig(sealing="manual")) as net:

        def read() -> int:
            sub = bt.Subtensor(net.url)
            try:
                return sub.block
            finally:
                sub.close()

        net.produce_blocks(3)
        assert await trio.to_thread.run_sync(read) == 3
    assert net._server._thread.is_alive() is False


def test_every_call_is_logged(home: Path, tmp_path: Path):
    log = tmp_path / "calls.jsonl"
    with run_devnet(DevnetConfig(sealing="manual", log=log)) as net:
        sub = bt.Subtensor(net.url)
        sub.connect()
        sub.close()
        expected = [call.method for call in net.calls]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["method"] for row in rows] == expected
    assert "chain_getBlockHash" in expected
    assert all(len(json.dumps(row)) < 2000 for row in rows)


def test_a_port_in_use_is_explained(home: Path):
    from crusades.errors import ConfigError

    with run_devnet(DevnetConfig(sealing="manual")) as net:
        port = int(net.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"), run_devnet(DevnetConfig(port=port)):
            pass


def test_storage_is_handed_out_to_the_byte(bench):
    odd = bytes(range(256))
    bench.net.set_reveals(NETUID, bench.hotkey, [(odd, 7)])
    key = bench.net.chain.state.key("Commitments", "RevealedCommitments", NETUID, bench.hotkey)
    raw = from_hex(ask(bench, "state_getStorage", [to_hex(key)]))
    assert raw == compact(1) + compact(256) + odd + (7).to_bytes(8, "little")


def test_an_extrinsic_waits_for_its_block_when_blocks_are_made_by_hand(home: Path):
    with run_devnet(DevnetConfig(sealing="manual", endowed={address("rich"): 10 * TAO})) as net, ThreadPoolExecutor(1) as pool:
        sub = bt.Subtensor(net.url)
        call = bt.calls.Balances.transfer_keep_alive(dest=address("poor"), value=TAO)
        waiting = pool.submit(sub.submit_call, call, key("rich"))
        assert net.chain.wait_pool(1, timeout=10)
        assert not waiting.done()
        net.produce_blocks(3)
        assert waiting.result(timeout=10).success
        sub.close()


def test_the_payload_that_the_sdk_seals_is_the_one_that_is_read_here():
    """Weights are sealed to a round of the wall clock; a block time far below zero brings that back to a round we carry."""

    def seal(block_time: float) -> tuple[bytes, int]:
        schedule = {"last_epoch_block": 0, "pending_epoch_at": 0, "subnet_epoch_index": 0, "tempo": 20, "blocks_since_last_step": 3}
        ciphertext, reveal_round = core.get_encrypted_commit_v2(
            uids=[2, 3],
            weights=[65535, 7],
            version_key=9,
            current_block=10,
            subnet_reveal_period_epochs=1,
            block_time=block_time,
            hotkey=bytes(key("v").public_key),
            **schedule,
        )
        return bytes(ciphertext), int(reveal_round)

    now, per_second = seal(0.0)[1], (seal(300.0)[1] - seal(0.0)[1]) / 300
    nearby = (seal((drand.SEAL_ROUND - now) / per_second + step / 10) for step in range(-20, 21))
    ciphertext = next(ciphertext for ciphertext, reveal_round in nearby if reveal_round == drand.SEAL_ROUND)
    assert drand.unseal(ciphertext, drand.SEAL_ROUND) == weights_payload("v", [2, 3], [65535, 7], 9)
