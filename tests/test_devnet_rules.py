"""The rules that validators and miners meet, one by one, in the order in which the chain checks them."""

from __future__ import annotations

import os

import pytest
from devnet_kit import address, events, key, outcome, outcomes, sealed_fields, signed, weights_payload

from crusades.devnet import Devnet, DevnetConfig, SubnetConfig, drand, oracle
from crusades.devnet.errors import RpcError
from crusades.devnet.scale import compact
from crusades.errors import ConfigError, UsageError

TAO = 10**9
SET = "SubtensorModule.set_weights"
COMMIT = "SubtensorModule.commit_timelocked_weights"


def net_of(*, pool_checks=False, stake_threshold=0, reveal_blocks=4, validators=("v",), miners=("m1", "m2", "m3"), **subnet) -> Devnet:
    """Subnet 1 with the owner as uid 0, then the validators, then the miners; at block 5. Pool checks are off, so that the
    errors of the calls themselves are seen."""
    config = DevnetConfig(
        sealing="manual", pool_checks=pool_checks, stake_threshold=stake_threshold, reveal_blocks=reveal_blocks, subnets=(SubnetConfig(netuid=1, **subnet),)
    )
    net = Devnet(config)
    net.produce_blocks(5)
    for name in validators:
        net.register(1, address(name), permit=True)
    for name in miners:
        net.register(1, address(name))
    return net


def set_weights(net: Devnet, name="v", dests=(2, 3), weights=(1, 3), version_key=0, netuid=1) -> str:
    return outcome(net.chain, name, SET, netuid=netuid, dests=list(dests), weights=list(weights), version_key=version_key)


def commit_weights(net: Devnet, ciphertext: bytes, name="v", reveal_round=1000, version=4) -> str:
    return outcome(net.chain, name, COMMIT, netuid=1, commit=ciphertext, reveal_round=reveal_round, commit_reveal_version=version)


def commit(net: Devnet, ciphertext: bytes, name="m1", reveal_round=1000) -> str:
    return outcome(net.chain, name, "Commitments.set_commitment", netuid=1, info=sealed_fields(ciphertext, reveal_round))


def reveals(net: Devnet, name="m1"):
    from crusades.devnet.pallets.commitments import read_reveals

    return read_reveals(net.chain.storage.get(net.chain.state.key("Commitments", "RevealedCommitments", 1, address(name))))


# ------------------------------------------------------------------------------------------------ plain weights


def test_weights_are_stored_scaled_to_their_largest():
    net = net_of()
    assert set_weights(net, weights=(1, 3)) == "ok"
    assert net.weights(1, 1) == {2: 21845, 3: 65535}
    assert net.get("LastUpdate", 1)[1] == net.chain.head.number
    assert ("SubtensorModule.WeightsSet", [1, 1]) in [(name, list(value)) for name, value in events(net.chain) if "Weights" in name]


LADDER = [
    ({"commit_reveal": True}, {}, "CommitRevealEnabled"),
    ({}, {"netuid": 0}, "CanNotSetRootNetworkWeights"),
    ({}, {"weights": (1,)}, "WeightVecNotEqualSize"),
    ({}, {"netuid": 9}, "MechanismDoesNotExist"),
    ({}, {"dests": (0, 1, 2, 3, 4, 5), "weights": (1,) * 6}, "UidsLengthExceedUidsInSubNet"),
    ({}, {"name": "stranger"}, "HotKeyNotRegisteredInSubNet"),
    ({"weights_version": 7}, {"version_key": 6}, "IncorrectWeightVersionKey"),
    ({}, {"name": "m1"}, "NeuronNoValidatorPermit"),
    ({}, {"dests": (2, 2)}, "DuplicateUids"),
    ({}, {"dests": (2, 5)}, "UidVecContainInvalidOne"),
    ({"min_allowed_weights": 3}, {}, "WeightVecLengthIsLow"),
    ({"max_weights_limit": 40000}, {}, "MaxWeightExceeded"),
]


@pytest.mark.parametrize(("subnet", "call", "expected"), LADDER, ids=[row[2] for row in LADDER])
def test_each_rule_of_weights_has_its_error(subnet, call, expected):
    net = net_of(**subnet)
    for netuid in (0, 9):  # no such subnets, but commit-reveal is on where nothing is said
        net.set_hyperparameter(netuid, "CommitRevealWeightsEnabled", False)
    assert set_weights(net, **call) == expected


def test_of_two_broken_rules_the_chain_names_the_earlier():
    """Unequal lengths (2) before an unregistered signer (5), that before a stale version (7), that before no permit (10)…"""
    net = net_of(weights_version=7, min_allowed_weights=3, max_weights_limit=40000)
    assert set_weights(net, "stranger", dests=(2, 9), weights=(1,)) == "WeightVecNotEqualSize"
    assert set_weights(net, "stranger", dests=(9, 9), version_key=1) == "HotKeyNotRegisteredInSubNet"
    assert set_weights(net, "m1", dests=(9, 9), version_key=1) == "IncorrectWeightVersionKey"
    assert set_weights(net, "m1", dests=(9, 9), version_key=7) == "NeuronNoValidatorPermit"
    assert set_weights(net, dests=(9, 9), version_key=7) == "DuplicateUids"
    assert set_weights(net, dests=(2, 9), version_key=7) == "UidVecContainInvalidOne"
    assert set_weights(net, dests=(2, 3), version_key=7) == "WeightVecLengthIsLow"
    assert set_weights(net, dests=(2, 3, 4), weights=(9, 1, 1), version_key=7) == "MaxWeightExceeded"
    assert set_weights(net, dests=(2, 3, 4), weights=(2, 2, 1), version_key=7) == "ok"


def test_too_little_stake_is_refused_before_registration_is_looked_at():
    net = net_of(stake_threshold=2000 * TAO)
    assert set_weights(net) == "NotEnoughStakeToSetWeights"
    assert set_weights(net, "stranger") == "NotEnoughStakeToSetWeights"
    net.set_stake(1, address("v"), 2000 * TAO)
    assert set_weights(net) == "ok"


def test_the_rate_limit_counts_from_registration_and_lets_the_exact_block_pass():
    net = net_of(weights_rate_limit=10)
    born = net.get("LastUpdate", 1)[1]
    assert set_weights(net) == "SettingWeightsTooFast"
    net.produce_blocks(born + 9 - net.chain.head.number)
    assert set_weights(net) == "ok"
    assert net.get("LastUpdate", 1)[1] == born + 10


def test_a_weight_on_oneself_alone_needs_no_permit_and_no_minimum():
    assert set_weights(net_of(min_allowed_weights=3, max_weights_limit=100), "m1", dests=(2,), weights=(5,)) == "ok"


def test_the_owners_hotkey_needs_no_permit_and_no_stake():
    assert set_weights(net_of(stake_threshold=TAO), "Alice//hotkey") == "ok"


def test_the_minimum_is_no_more_than_there_are_neurons():
    net = net_of(min_allowed_weights=1000)
    assert set_weights(net, dests=(0, 1, 2, 3, 4), weights=(1,) * 5) == "ok"


@pytest.mark.parametrize(
    ("subnet", "settings", "name", "number"),
    [
        ({"weights_rate_limit": 100}, {}, "v", 6),
        ({}, {"stake_threshold": 5000 * TAO}, "v", 1),
    ],
    ids=["rate limit", "stake"],
)
def test_the_pool_refuses_what_is_sure_to_fail(subnet, settings, name, number):
    net = net_of(pool_checks=True, **settings, **subnet)
    assert set_weights(net, name) == f"Custom error: {number}"


# ------------------------------------------------------------------------------------------------ sealed weights


def advance_to_epoch(net: Devnet, epoch: int) -> None:
    while net.get("SubnetEpochIndex", 1) < epoch:
        net.produce_blocks()


@pytest.mark.parametrize("period", [1, 2])
def test_sealed_weights_open_at_the_first_block_of_their_epoch(period):
    net = net_of(commit_reveal=True, reveal_period=period)
    ciphertext = drand.seal(weights_payload("v", [2, 3], [65535, 100]))
    assert commit_weights(net, ciphertext) == "ok"
    committed_at = net.chain.head.number
    assert net.get("LastUpdate", 1)[1] == committed_at
    advance_to_epoch(net, period - 1 if period > 1 else 0)
    while net.get("SubnetEpochIndex", 1) < period:
        assert net.weights(1, 1) == {}
        net.produce_blocks()
    assert net.weights(1, 1) == {2: 65535, 3: 100}
    assert net.get("LastEpochBlock", 1) == net.chain.head.number
    assert "SubtensorModule.TimelockedWeightsRevealed" in [name for name, _ in events(net.chain)]
    assert net.get("LastUpdate", 1)[1] == committed_at


def test_weights_sealed_to_the_future_open_by_what_the_client_tells():
    net = net_of(commit_reveal=True)
    ciphertext = os.urandom(300)
    with net.chain.patching() as env:
        assert oracle.tell(env.state, ciphertext, weights_payload("v", [2], [65535]))
        assert not oracle.tell(env.state, ciphertext, b"another answer")
    assert commit_weights(net, ciphertext, reveal_round=99_000_000) == "ok"
    advance_to_epoch(net, 1)
    assert net.weights(1, 1) == {2: 65535}


def test_weights_whose_round_never_comes_wait_through_their_epoch_and_vanish():
    net = net_of(commit_reveal=True)
    commit_weights(net, os.urandom(300), reveal_round=99_000_000)
    advance_to_epoch(net, 1)
    assert len(net.get("TimelockedWeightCommits", 1, 0)) == 1
    advance_to_epoch(net, 2)
    assert net.get("TimelockedWeightCommits", 1, 0) == []
    assert net.weights(1, 1) == {}


@pytest.mark.parametrize(
    "plaintext",
    [weights_payload("m1", [2], [1]), weights_payload("v", [99], [1]), weights_payload("v", [2], [1, 2]), b"\x80nonsense"],
    ids=["another's", "no such uid", "unequal", "nonsense"],
)
def test_sealed_weights_that_break_a_rule_vanish_silently(plaintext):
    net = net_of(commit_reveal=True)
    commit_weights(net, drand.seal(plaintext))
    advance_to_epoch(net, 1)
    assert net.weights(1, 1) == {}
    assert net.get("TimelockedWeightCommits", 1, 0) == []
    assert "SubtensorModule.TimelockedWeightsRevealed" not in [name for name, _ in events(net.chain)]


@pytest.mark.parametrize(
    ("subnet", "call", "expected"),
    [
        ({"commit_reveal": False}, {}, "CommitRevealDisabled"),
        ({}, {"version": 3}, "IncorrectCommitRevealVersion"),
        ({}, {"name": "stranger"}, "HotKeyNotRegisteredInSubNet"),
        ({"weights_rate_limit": 50}, {}, "CommittingWeightsTooFast"),
    ],
)
def test_each_rule_of_sealed_weights_has_its_error(subnet, call, expected):
    assert commit_weights(net_of(**{"commit_reveal": True, **subnet}), b"\x01" * 200, **call) == expected


def test_ten_sealed_commits_wait_at_most():
    net = net_of(commit_reveal=True, tempo=100)
    assert [commit_weights(net, os.urandom(50)) for _ in range(11)] == ["ok"] * 10 + ["TooManyUnrevealedCommits"]


def test_the_pool_keeps_one_rate_limited_commit_per_hotkey():
    net = net_of(commit_reveal=True, weights_rate_limit=2, pool_checks=True)
    net.produce_blocks(5)
    args = {"netuid": 1, "reveal_round": 1000, "commit_reveal_version": 4}
    net.chain.submit(signed(net.chain, "v", COMMIT, commit=b"a" * 50, **args))
    with pytest.raises(RpcError, match="Priority is too low"):
        net.chain.submit(signed(net.chain, "v", COMMIT, commit=b"b" * 50, **args))


# ------------------------------------------------------------------------------------------------ epochs


def test_epochs_come_every_tempo_blocks_from_the_last():
    net = net_of(tempo=7)
    fired = []
    for _ in range(30):
        net.produce_blocks()
        if net.get("LastEpochBlock", 1) == net.chain.head.number:
            fired.append(net.chain.head.number)
    assert fired == [7, 14, 21, 28, 35]
    assert net.get("SubnetEpochIndex", 1) == 5


def test_a_new_tempo_counts_from_the_last_epoch():
    net = net_of(tempo=20)
    net.set_hyperparameter(1, "Tempo", 3)
    net.produce_blocks()
    assert net.get("LastEpochBlock", 1) == 6


def test_the_owner_can_ask_for_an_epoch():
    net = net_of(tempo=100)
    assert outcome(net.chain, "m1", "SubtensorModule.trigger_epoch", netuid=1) == "NotSubnetOwner"
    assert outcome(net.chain, "Alice", "SubtensorModule.trigger_epoch", netuid=1) == "ok"
    due = net.get("PendingEpochAt", 1)
    net.produce_blocks(due - net.chain.head.number)
    assert net.get("LastEpochBlock", 1) == due
    assert net.get("PendingEpochAt", 1) == 0


def test_permits_go_to_the_most_staked_at_each_epoch():
    net = net_of(validators=("v", "w"), max_validators=1)
    net.set_stake(1, address("w"), 5000 * TAO)
    advance_to_epoch(net, 1)
    assert net.get("ValidatorPermit", 1) == [False, False, True, False, False, False]


def test_incentive_follows_the_weights():
    net = net_of()
    set_weights(net, dests=(2, 3), weights=(1, 3))
    advance_to_epoch(net, 1)
    assert [round(part / 65535, 2) for part in net.get("Incentive", 1)] == [0, 0, 0.25, 0.75, 0]


# ------------------------------------------------------------------------------------------------ commitments


def test_a_seal_is_opened_so_many_blocks_after_the_commit():
    net = net_of(reveal_blocks=4)
    payload = compact(5) + b"hello"
    assert commit(net, drand.seal(payload)) == "ok"
    at = net.chain.head.number
    assert ("Commitments.TimelockCommitment", 1000) in [(n, v.get("reveal_round")) for n, v in events(net.chain) if n.startswith("Commitments")]
    net.produce_blocks(3)
    assert reveals(net) == []
    assert net.get("CommitmentOf", 1, address("m1"), pallet="Commitments")["block"] == at
    net.produce_blocks()
    assert reveals(net) == [(payload, at + 4)]
    assert net.get("CommitmentOf", 1, address("m1"), pallet="Commitments") is None
    assert "Commitments.CommitmentRevealed" in [name for name, _ in events(net.chain)]


@pytest.mark.parametrize("reveal_round", sorted(drand.SIGNATURES))
def test_every_carried_round_opens(reveal_round):
    net = net_of(reveal_blocks=1)
    commit(net, drand.seal(b"payload", reveal_round), reveal_round=reveal_round)
    net.produce_blocks()
    assert reveals(net) == [(b"payload", net.chain.head.number)]


def test_a_seal_may_be_stored_as_the_whole_envelope():
    net = net_of(reveal_blocks=1)
    import bittensor_core

    commit(net, bytes(bittensor_core.encrypt_at_round(b"payload", 1000)[0]))
    net.produce_blocks()
    assert [text for text, _ in reveals(net)] == [b"payload"]


@pytest.mark.parametrize(
    ("ciphertext", "reveal_round", "kind"),
    [
        (b"\x5a" * 200, 1000, "CiphertextDeserialize"),
        (drand.seal(b"x")[:-5], 1000, "CiphertextDeserialize"),
        (drand.seal(b"x", 1), 1000, "Decrypt"),
        (drand.seal(b""), 1000, "EmptyPlaintext"),
    ],
    ids=["noise", "cut off", "another round", "empty"],
)
def test_a_seal_that_cannot_be_opened_is_marked_as_failed(ciphertext, reveal_round, kind):
    net = net_of(reveal_blocks=1)
    commit(net, ciphertext, reveal_round=reveal_round)
    net.produce_blocks()
    assert reveals(net) == []
    fields = net.get("CommitmentOf", 1, address("m1"), pallet="Commitments")["info"]["fields"]
    assert list(fields[0]) == ["TimelockRevealFailed"]
    failed = [value for name, value in events(net.chain) if name == "Commitments.CommitmentRevealFailed"]
    assert [(row["reveal_round"], row["error"]) for row in failed] == [(reveal_round, kind)]
    net.produce_blocks()
    assert "Commitments.CommitmentRevealFailed" not in [name for name, _ in events(net.chain)]


def test_a_seal_to_a_round_nobody_knows_stays_closed():
    net = net_of(reveal_blocks=1)
    commit(net, drand.seal(b"x", 99_000_000), reveal_round=99_000_000)
    net.produce_blocks(10)
    assert list(net.get("CommitmentOf", 1, address("m1"), pallet="Commitments")["info"]["fields"][0]) == ["TimelockEncrypted"]


def test_a_new_commitment_overwrites_a_closed_seal_for_ever():
    net = net_of(reveal_blocks=4)
    commit(net, drand.seal(b"first"))
    commit(net, drand.seal(b"second"))
    net.produce_blocks(10)
    assert [text for text, _ in reveals(net)] == [b"second"]


def test_the_last_ten_openings_are_kept():
    net = net_of(reveal_blocks=1, tempo=1)
    for number in range(12):
        commit(net, drand.seal(b"%d" % number))
        net.produce_blocks()
    assert [text for text, _ in reveals(net)] == [b"%d" % number for number in range(2, 12)]


def test_the_quota_is_counted_in_bytes_and_starts_anew_with_each_epoch():
    net = net_of(tempo=50)
    seal = os.urandom(1000)
    assert [commit(net, seal) for _ in range(4)] == ["ok", "ok", "ok", "SpaceLimitExceeded"]
    advance_to_epoch(net, 1)
    assert commit(net, seal) == "ok"


def test_a_small_commitment_counts_as_a_hundred_bytes():
    net = net_of(tempo=100)
    assert [commit(net, b"tiny") for _ in range(32)].count("ok") == 31


def test_only_registered_hotkeys_commit():
    assert commit(net_of(), b"x" * 100, "stranger") == "AccountNotAllowedCommit"
    assert commit(net_of(pool_checks=True), b"x" * 100, "stranger") == "Custom error: 19"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([{"Raw4": b"abcd"}] * 4, "TooManyFieldsInCommitmentInfo"),
        ([{"TimelockRevealFailed": {"encrypted": b"x", "reveal_round": 1}}], "TimelockRevealFailedNotAllowed"),
    ],
)
def test_commitments_are_bounded(fields, expected):
    assert outcome(net_of().chain, "m1", "Commitments.set_commitment", netuid=1, info={"fields": [fields]}) == expected


def test_a_ciphertext_beyond_the_bound_cannot_even_be_decoded():
    assert "cannot be decoded" in commit(net_of(), os.urandom(1025))
    assert "cannot be decoded" in commit_weights(net_of(commit_reveal=True), os.urandom(5001))
    assert commit_weights(net_of(commit_reveal=True), os.urandom(5000)) == "ok"


def test_plain_commitments_stay_plain_to_the_byte():
    net = net_of()
    text = "0x8041 is text here"
    info = {"fields": [[{f"Raw{len(text)}": text.encode()}]]}
    assert outcome(net.chain, "m1", "Commitments.set_commitment", netuid=1, info=info) == "ok"
    raw = net.chain.storage.get(net.chain.state.key("Commitments", "CommitmentOf", 1, address("m1")))
    assert raw.endswith(text.encode())
    assert events(net.chain)[-2][0] == "Commitments.Commitment"


# ------------------------------------------------------------------------------------------------ registration


def test_a_registration_burns_its_price_and_raises_it():
    net = net_of(burn=2 * TAO)
    net.fund(address("cold"), 10 * TAO)
    assert outcome(net.chain, "cold", "SubtensorModule.burned_register", netuid=1, hotkey=address("new")) == "ok"
    assert net.uid(1, address("new")) == 5
    assert net.balance(address("cold")) < 8 * TAO
    assert net.get("Burn", 1) > 2 * TAO
    assert net.get("BlockAtRegistration", 1, 5) == net.chain.head.number


@pytest.mark.parametrize(
    ("subnet", "args", "expected"),
    [
        ({}, {"netuid": 0}, "RegistrationNotPermittedOnRootSubnet"),
        ({}, {"netuid": 5}, "SubnetNotExists"),
        ({"registration_allowed": False}, {}, "SubNetRegistrationDisabled"),
        ({}, {"hotkey": "m1"}, "HotKeyAlreadyRegisteredInSubNet"),
        ({"burn": 50 * TAO}, {}, "NotEnoughBalanceToStake"),
    ],
)
def test_registrations_fail_as_on_the_chain(subnet, args, expected):
    net = net_of(**subnet)
    net.fund(address("cold"), 10 * TAO)
    hotkey = address(args.get("hotkey", "new"))
    assert outcome(net.chain, "cold", "SubtensorModule.burned_register", netuid=args.get("netuid", 1), hotkey=hotkey) == expected


def test_a_hotkey_of_another_coldkey_cannot_be_registered():
    net = net_of()
    net.replace(1, 2, address("other"))
    net.fund(address("cold"), 10 * TAO)
    assert outcome(net.chain, "cold", "SubtensorModule.burned_register", netuid=1, hotkey=address("m1")) == "NonAssociatedColdKey"


def test_a_full_subnet_replaces_the_neuron_that_earns_least_and_never_the_owner():
    net = net_of(max_uids=5, immunity_period=0)
    set_weights(net, dests=(2, 3), weights=(1, 3))
    advance_to_epoch(net, 1)
    assert net.register(1, address("new")) == 1  # nobody pays the validator, which was the first to register
    assert net.uid(1, address("v")) is None
    assert net.get("Weights", 1, 1) == []
    assert net.register(1, address("newer")) == 4


def test_the_immune_are_replaced_only_when_nobody_else_is_left():
    net = net_of(max_uids=5, immunity_period=10, miners=("m1", "m2"))
    net.produce_blocks(20)
    net.register(1, address("late"))
    assert net.register(1, address("new")) == 1
    full = net_of(max_uids=1, miners=(), validators=())
    with pytest.raises(UsageError, match="replaced"):
        full.register(1, address("new"))


def test_a_replaced_neurons_openings_stay_and_weights_to_its_uid_are_cleared():
    net = net_of(reveal_blocks=1)
    commit(net, drand.seal(b"payload"))
    net.produce_blocks()
    set_weights(net, dests=(2, 3), weights=(1, 3))
    net.replace(1, 2, address("heir"))
    assert net.uid(1, address("m1")) is None
    assert net.uid(1, address("heir")) == 2
    assert [text for text, _ in reveals(net)] == [b"payload"]
    assert net.weights(1, 1) == {2: 0, 3: 65535}
    assert net.get("LastUpdate", 1)[2] == net.chain.head.number


def test_a_subnet_takes_256_neurons():
    net = net_of(miners=())
    for number in range(254):
        net.register(1, address(f"n{number}"))
    assert net.get("SubnetworkN", 1) == 256
    assert set_weights(net, dests=range(256), weights=[1] * 256) == "ok"


# ------------------------------------------------------------------------------------------------ the rest


def test_axons_are_served_by_the_registered():
    net = net_of()
    args = {"version": 1, "ip": 2130706433, "port": 8091, "ip_type": 4, "protocol": 4, "placeholder1": 0, "placeholder2": 0}
    assert outcome(net.chain, "stranger", "SubtensorModule.serve_axon", netuid=1, **args) == "HotKeyNotRegisteredInNetwork"
    assert outcome(net.chain, "m1", "SubtensorModule.serve_axon", netuid=1, **args) == "ok"
    assert net.get("Axons", 1, address("m1"))["port"] == 8091


def test_extrinsics_of_one_block_run_in_order_of_arrival():
    net = net_of()
    for number in (1, 2):
        net.chain.submit(signed(net.chain, "m1", "Commitments.set_commitment", netuid=1, info={"fields": [[{"Raw1": b"%d" % number}]]}))
    net.chain.submit(signed(net.chain, "v", SET, netuid=1, dests=[2], weights=[1], version_key=0))
    net.produce_blocks()
    assert outcomes(net.chain) == ["ok", "ok", "ok"]
    raw = net.chain.storage.get(net.chain.state.key("Commitments", "CommitmentOf", 1, address("m1")))
    assert raw.endswith(b"2")


def test_helpers_name_what_is_wrong():
    net = net_of()
    with pytest.raises(UsageError, match="no subnet 4"):
        net.register(4, address("new"))
    with pytest.raises(UsageError, match="registered"):
        net.register(1, address("m1"))
    with pytest.raises(ConfigError, match="SS58"):
        net.fund("nobody", 1)
    with pytest.raises(UsageError, match="no uid 77"):
        net.replace(1, 77, address("new"))
    with pytest.raises(UsageError, match="cannot be set"):
        net.set_hyperparameter(1, "Tempo", "soon")


def test_the_owner_key_is_endowed():
    assert net_of().balance(str(key("Alice").ss58_address)) == 1_000_000 * TAO
