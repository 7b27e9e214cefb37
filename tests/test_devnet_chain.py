"""The chain without any I/O: signatures, nonces, eras, the pool, blocks, reorganisations, what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import bittensor_core as core
import pytest
from devnet_kit import address, events, key, outcome, outcomes, signed

from crusades.devnet import OWNER, DevnetConfig, SubnetConfig, is_dev_genesis, journal
from crusades.devnet.chain import Chain
from crusades.devnet.errors import Invalid, RpcError
from crusades.devnet.extrinsic import parse, signed_payload
from crusades.devnet.metadata import SPEC_VERSION, TRANSACTION_VERSION, adapted
from crusades.devnet.pallets import balances
from crusades.devnet.scale import from_hex
from crusades.errors import ConfigError

TAO = 10**9


def chain_of(**settings) -> Chain:
    return Chain(DevnetConfig(sealing="manual", endowed={address("rich"): 10 * TAO}, **settings))


def transfer(chain: Chain, **options) -> bytes:
    return signed(chain, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO, **options)


# ------------------------------------------------------------------------------------------------ telling that it is none


def test_the_genesis_hash_says_that_this_is_a_devnet_and_is_the_same_every_time():
    first, second = chain_of(), chain_of()
    assert is_dev_genesis(first.ledger.genesis.hash)
    assert first.ledger.genesis.hash == second.ledger.genesis.hash
    assert not is_dev_genesis("0x2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03")


def test_another_block_time_is_another_genesis_because_clients_cache_metadata_by_it():
    assert chain_of(block_time=1.0).ledger.genesis.hash != chain_of(block_time=2.0).ledger.genesis.hash


def test_two_chains_with_the_same_genesis_part_ways_at_the_first_block():
    first, second = chain_of(), chain_of()
    first.produce()
    second.produce(3)
    assert first.ledger[1].hash != second.ledger[2].hash
    assert len({first.ledger[1].hash, second.ledger[1].hash, second.ledger[2].hash}) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org", ""])
def test_it_listens_on_loopback_only(host):
    with pytest.raises(ConfigError, match="loopback"):
        DevnetConfig(host=host).checked()


# ------------------------------------------------------------------------------------------------ metadata


def test_the_slot_duration_is_the_block_time():
    runtime = core.Runtime(adapted(0.25), SPEC_VERSION, TRANSACTION_VERSION, 42)
    assert runtime.constant("Aura", "SlotDuration") == 250


def test_the_consensus_mode_that_the_sdk_asks_for_is_declared():
    assert chain_of().state.module("SubnetEpochConsensus", 1) == 0


def test_a_hidden_item_is_gone_for_clients():
    runtime = core.Runtime(adapted(1.0, hidden=("TimelockedWeightCommits",)), SPEC_VERSION, TRANSACTION_VERSION, 42)
    with pytest.raises(Exception, match="TimelockedWeightCommits"):
        runtime.storage_entry("SubtensorModule", "TimelockedWeightCommits")


# ------------------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize("era", [None, "00"], ids=["mortal", "immortal"])
@pytest.mark.parametrize("tip", [0, 10**6])
def test_the_signed_payload_is_the_one_that_the_sdk_signs(era, tip):
    chain = chain_of()
    chain.produce(5)
    raw = transfer(chain, era=era, tip=tip)
    extrinsic = parse(chain.registry, raw)
    anchor = chain.ledger[extrinsic.era.birth(chain.head.number + 1)].hash
    payload = signed_payload(extrinsic, SPEC_VERSION, from_hex(chain.ledger.genesis.hash), from_hex(anchor))
    assert core.verify(payload, extrinsic.signature, address("rich"), 1)
    assert chain.submit(raw) == extrinsic.hash


def test_a_flipped_bit_anywhere_is_refused():
    chain = chain_of()
    raw = transfer(chain)
    for at in range(len(raw)):
        broken = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(RpcError):
            chain.submit(broken)
    assert len(chain.pool) == 0


def test_a_signature_for_another_spec_version_is_refused():
    chain = chain_of()
    old = core.Runtime(chain.metadata, SPEC_VERSION - 1, TRANSACTION_VERSION, 42)
    with pytest.raises(Invalid, match="bad signature"):
        chain.submit(transfer(chain, spec=old))


def test_an_expired_era_is_refused_as_the_bad_signature_it_has_become():
    chain = chain_of()
    raw = transfer(chain)
    chain.produce(64)
    with pytest.raises(Invalid, match="bad signature"):
        chain.submit(raw)


def test_an_extrinsic_that_waits_past_its_era_is_dropped_and_its_watcher_told():
    chain, told = chain_of(), []
    chain.submit(transfer(chain), told.append, lost=True)
    chain.produce(64)
    assert told == ["ready", "invalid"]
    assert len(chain.pool) == 0


# ------------------------------------------------------------------------------------------------ nonces and the pool


def test_a_used_nonce_is_outdated():
    chain = chain_of()
    raw = transfer(chain)
    chain.submit(raw)
    chain.produce()
    with pytest.raises(Invalid, match="outdated"):
        chain.submit(raw)


def test_the_same_extrinsic_twice_is_already_imported():
    chain = chain_of()
    raw = transfer(chain)
    chain.submit(raw)
    with pytest.raises(RpcError, match="already imported"):
        chain.submit(raw)


def test_another_extrinsic_with_a_waiting_nonce_has_too_low_a_priority():
    chain = chain_of()
    chain.submit(transfer(chain, nonce=0))
    with pytest.raises(RpcError, match="Priority is too low"):
        chain.submit(transfer(chain, nonce=0, tip=1))


def test_a_nonce_from_the_future_waits_for_the_gap_to_close():
    chain, told = chain_of(), []
    chain.submit(transfer(chain, nonce=1), told.append)
    chain.produce()
    assert told == ["future"]
    assert outcomes(chain) == []
    chain.submit(transfer(chain, nonce=0))
    chain.produce()
    assert outcomes(chain) == ["ok", "ok"]


def test_the_next_nonce_counts_what_waits():
    chain = chain_of()
    assert [chain.next_nonce(address("rich")), chain.submit(transfer(chain)) and chain.next_nonce(address("rich"))] == [0, 1]


def test_a_watcher_hears_of_block_and_finality():
    chain, told = chain_of(finality_lag=2), []
    chain.submit(transfer(chain), told.append)
    chain.produce(3)
    included = chain.ledger[1].hash
    assert told == ["ready", {"inBlock": included}, {"finalized": included}]


# ------------------------------------------------------------------------------------------------ balances


def test_a_transfer_moves_tao_and_costs_a_fee():
    chain = chain_of()
    assert outcome(chain, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO) == "ok"
    assert balances.free(chain.state, address("poor")) == TAO
    assert balances.free(chain.state, address("rich")) == 9 * TAO - balances.FEE
    assert ("Balances.Transfer", {"from": address("rich"), "to": address("poor"), "amount": TAO}) in events(chain)


@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("transfer_keep_alive", {"value": 11 * TAO}, "InsufficientBalance"),
        ("transfer_keep_alive", {"value": 10 * TAO - balances.FEE - 100}, "Expendability"),
        ("transfer_allow_death", {"value": 10 * TAO - balances.FEE - 100}, "ok"),
        ("transfer_keep_alive", {"value": 100}, "ExistentialDeposit"),
        ("transfer_all", {"keep_alive": False}, "ok"),
    ],
)
def test_transfers_fail_as_on_the_chain(call, args, expected):
    chain = chain_of()
    assert outcome(chain, "rich", f"Balances.{call}", dest=address("poor"), **args) == expected


def test_who_cannot_pay_the_fee_is_refused_by_the_pool():
    chain = chain_of()
    assert "Inability to pay some fees" in outcome(chain, "poor", "Balances.transfer_keep_alive", dest=address("rich"), value=1)


def test_a_failed_call_has_no_effect_but_nonce_and_fee():
    chain = chain_of()
    outcome(chain, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=11 * TAO)
    assert chain.next_nonce(address("rich")) == 1
    assert balances.free(chain.state, address("rich")) == 10 * TAO - balances.FEE


def test_a_call_that_is_not_modelled_fails_and_says_so():
    chain = chain_of()
    assert outcome(chain, "rich", "System.remark_with_event", remark=b"x") == "CallFiltered"


# ------------------------------------------------------------------------------------------------ the past


def test_old_blocks_keep_their_state():
    chain = chain_of()
    before = chain.head.hash
    outcome(chain, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO)
    at = chain.number_at(before)
    assert chain.state.get("System", "Account", address("poor"), at=at)["data"]["free"] == 0
    assert chain.state.get("System", "Account", address("poor"))["data"]["free"] == TAO


def test_pruned_state_is_refused_and_does_not_come_back():
    chain = chain_of(keep_blocks=10)
    chain.produce(70)
    with pytest.raises(RpcError, match="State already discarded"):
        chain.number_at(chain.ledger[59].hash)
    assert chain.number_at(chain.ledger[60].hash) == 60
    chain.keep_blocks = None
    with pytest.raises(RpcError, match="State already discarded"):
        chain.number_at(chain.ledger[53].hash)
    assert chain.state.get("System", "Number", at=54) == 54


def test_a_reorganisation_undoes_blocks_and_their_extrinsics_wait_again():
    chain, told = chain_of(), []
    raw = transfer(chain)
    chain.submit(raw, told.append)
    chain.produce()
    voided = chain.head.hash
    assert chain.reorganize(1) == 1
    assert chain.ledger.number(voided) is None
    assert balances.free(chain.state, address("poor")) == 0
    chain.produce()
    assert chain.head.hash != voided
    assert balances.free(chain.state, address("poor")) == TAO
    assert told == ["ready", {"inBlock": voided}, {"retracted": voided}, {"inBlock": chain.head.hash}]


def test_a_reorganisation_can_lose_the_extrinsics():
    chain = chain_of()
    chain.submit(transfer(chain))
    chain.produce()
    chain.reorganize(1, keep_extrinsics=False)
    chain.produce(3)
    assert balances.free(chain.state, address("poor")) == 0


def test_finalised_blocks_are_never_voided():
    chain = chain_of(finality_lag=2)
    chain.produce(10)
    assert chain.reorganize(5) == 2
    assert chain.head.number == 8
    assert chain.reorganize(5) == 2
    assert chain_of(finality_lag=0).reorganize(1) == 0


def test_an_upgrade_voids_what_waits_and_what_was_signed_before():
    chain, told = chain_of(), []
    late = transfer(chain, nonce=1)
    chain.submit(transfer(chain, nonce=0), told.append)
    assert chain.upgrade() == SPEC_VERSION + 1
    assert told == ["ready", "invalid"]
    with pytest.raises(Invalid, match="bad signature"):
        chain.submit(late)
    new = core.Runtime(chain.metadata, SPEC_VERSION + 1, TRANSACTION_VERSION, 42)
    chain.submit(transfer(chain, spec=new))


# ------------------------------------------------------------------------------------------------ on disk


def test_a_journalled_chain_comes_back_as_it_was(tmp_path: Path):
    path = tmp_path / "chain"
    first = chain_of()
    kept = journal.attach(first, path)
    outcome(first, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO)
    first.produce(2)
    first.reorganize(2)
    first.produce(1)
    with first.patching() as env:
        balances.set_free(env.state, address("later"), 7 * TAO)
    first.upgrade()
    kept.close()

    second = chain_of()
    again = journal.attach(second, path)
    assert [block.hash for block in second.ledger._blocks] == [block.hash for block in first.ledger._blocks]
    keys = list(first.storage.keys(b""))
    assert list(second.storage.keys(b"")) == keys
    assert [second.storage.get(k) for k in keys] == [first.storage.get(k) for k in keys]
    assert second.storage.get(keys[0], at=1) == first.storage.get(keys[0], at=1)
    assert second.spec_version == SPEC_VERSION + 1
    again.close()


def test_a_chain_that_came_back_goes_on(tmp_path: Path):
    path = tmp_path / "chain"
    first = chain_of()
    kept = journal.attach(first, path)
    outcome(first, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO)
    kept.close()
    second = chain_of()
    again = journal.attach(second, path)
    assert outcome(second, "rich", "Balances.transfer_keep_alive", dest=address("poor"), value=TAO) == "ok"
    again.close()
    third = chain_of()
    journal.attach(third, path).close()
    assert balances.free(third.state, address("poor")) == 2 * TAO


def test_a_frame_cut_off_by_a_crash_is_dropped(tmp_path: Path):
    path = tmp_path / "chain"
    first = chain_of()
    kept = journal.attach(first, path)
    first.produce(3)
    kept.close()
    path.write_bytes(path.read_bytes()[:-5])
    second = chain_of()
    journal.attach(second, path).close()
    assert second.head.hash == first.ledger[2].hash


def test_a_state_file_that_is_none_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\x05\x00\x00\x00hello and more")
    with pytest.raises(ConfigError, match="no state file"):
        journal.attach(chain_of(), path)
    assert path.read_bytes() == b"\x05\x00\x00\x00hello and more"


def test_a_state_file_of_another_dev_chain_is_refused(tmp_path: Path):
    path = tmp_path / "chain"
    journal.attach(chain_of(block_time=1.0), path).close()
    with pytest.raises(ConfigError, match="another dev chain"):
        journal.attach(chain_of(block_time=2.0), path)


def test_a_state_file_in_use_is_refused(tmp_path: Path):
    held = journal.attach(chain_of(), tmp_path / "chain")
    with pytest.raises(ConfigError, match="another devnet"):
        journal.attach(chain_of(), tmp_path / "chain")
    held.close()


# ------------------------------------------------------------------------------------------------ genesis


def test_every_subnet_has_its_owner_as_uid_0():
    chain = chain_of(subnets=(SubnetConfig(netuid=1), SubnetConfig(netuid=7, owner_hotkey=address("boss"))))
    assert chain.state.module("Uids", 7, address("boss")) == 0
    assert chain.state.module("SubnetOwner", 1) == OWNER
    assert chain.state.module("SubnetworkN", 1) == 1


def test_a_netuid_given_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        chain_of(subnets=(SubnetConfig(netuid=2), SubnetConfig(netuid=2)))


def test_the_kits_keys_are_the_well_known_ones():
    assert key("Alice").ss58_address == OWNER
