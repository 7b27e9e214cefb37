"""The adapter against the devnet, with the unmodified SDK over a real socket."""

import os

import pytest
import trio
from chain_world import NETUID, REVEAL, SETTINGS, URL, open_world, payload, world  # noqa: F401  (world is a fixture)

from crusades import chain as chains
from crusades.chain_link import Refused
from crusades.chain_needs import STORAGE
from crusades.chain_networks import sdk
from crusades.chain_read import State
from crusades.chain_records import Expired, Unresolved
from crusades.chain_weights import Window, arrived, foreign_update
from crusades.devnet import DEV_GENESIS_PREFIX
from crusades.errors import ChainError, ChainIncompatible, ConfigError
from crusades.records import Status


def brief(rows):
    return [(r.commit_block, r.state, r.reason.code if r.reason else 0) for r in rows]


def windows(told):
    """What a validator journals of the extrinsics that it signed."""
    return [Window(sent.first, sent.last) for sent in told]


async def finalised(chain):
    """Commitments at the finalised head."""
    return await chain.commitments((await chain.head()).finalized_hash, final=True)


# ------------------------------------------------------------------------------------------------ which chain


async def test_check_tells_which_chain_this_is_and_that_nothing_is_missing(world):  # noqa: F811
    facts = await world.chain.check()
    assert facts.is_dev
    assert facts.subnet_exists
    assert facts.missing == ()
    assert facts.spec_version == world.net.chain.spec_version
    assert world.chain.block_time == pytest.approx(0.02)


def test_the_dev_genesis_is_what_devnet_says_it_is():
    assert chains.DEV_GENESIS == DEV_GENESIS_PREFIX


def test_a_network_is_held_to_its_genesis():
    finney, dev, other = sdk.FINNEY_GENESIS_HASH, DEV_GENESIS_PREFIX + "00" * 16, "0x" + "12" * 32
    assert chains.wrong_chain("finney", finney) is None
    assert chains.wrong_chain("finney", other)
    assert chains.wrong_chain("finney", dev)
    assert chains.wrong_chain("test", finney)
    assert chains.wrong_chain("test", dev)
    assert chains.wrong_chain("dev", dev) is None
    assert chains.wrong_chain("dev", other)
    assert chains.wrong_chain("local", finney)
    assert chains.wrong_chain("local", other) is None
    assert chains.wrong_chain("ws://somewhere", other) is None


def test_an_unknown_network_is_a_config_error():
    with pytest.raises(ConfigError, match="finney, test, local, dev or a ws://"):
        chains.endpoints_of("fineey", SETTINGS)


async def test_the_wrong_chain_stops_the_first_call_with_words(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(chains, "endpoints_of", lambda network, settings: ([world.net.url], []))
    async with chains.open_chain(SETTINGS, "finney", NETUID, world.bridge) as chain:
        with pytest.raises(ConfigError, match="is not the chain of --network finney"):
            await chain.check()


async def test_a_missing_subnet_is_told(world):  # noqa: F811
    async with chains.open_chain(SETTINGS, world.net.url, 77, world.bridge) as chain:
        assert not (await chain.check()).subnet_exists
        with pytest.raises(ChainError, match="subnet 77 does not exist"):
            await chain.neurons()


# ------------------------------------------------------------------------------------------------ reads


async def test_neurons_carry_what_scoring_and_weights_need(world):  # noqa: F811
    await world.blocks(3)
    neurons = {n.hotkey: n for n in await world.chain.neurons()}
    me = neurons[world.chain.hotkey]
    assert (me.validator_permit, me.stake, me.coldkey) == (True, 1000.0, world.validator.coldkeypub.ss58_address)
    assert me.uid == world.net.uid(NETUID, me.hotkey)
    owner = await world.chain.owner()
    assert owner.uid == 0
    assert neurons[owner.hotkey].uid == 0


async def test_heads_tell_of_every_new_block_and_of_finality(world):  # noqa: F811
    seen = []
    async with trio.open_nursery() as nursery:
        async def watch():
            async for head in world.chain.heads():
                if head not in seen:
                    seen.append(head)
                await world.blocks()
                if len(seen) == 5:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
    assert [h.best for h in seen] == sorted({h.best for h in seen})
    assert all(h.best - h.finalized <= 2 for h in seen)


async def test_heads_go_on_through_drops_closes_and_silence(tmp_path):
    settings = chains.hparams.Chain(call_deadline=0.5, redial_first=0.05, redial_max=0.2, poll_interval=0.1)
    async with open_world(tmp_path, settings) as w:
        heads = w.chain.heads()
        first = await anext(heads)
        for kind in ("drop", "close", "silence"):
            w.fault(kind, "chain_getHead")
            await w.blocks()
            with trio.fail_after(5):
                head = await anext(heads)
            assert head.best > first.best
            first = head
        await heads.aclose()


# ------------------------------------------------------------------------------------------------ commitments


async def test_a_commitment_is_seen_sealed_then_revealed_under_one_name(world):  # noqa: F811
    done = await world.chain.commit(payload(), world.miner, REVEAL)
    (sealed,) = await world.chain.commitments()
    assert (sealed.state, sealed.commit_block, sealed.reveal_round, sealed.payload) == (Status.SEALED, done.block, 1000, None)
    await world.blocks(REVEAL)
    (revealed,) = await world.chain.commitments()
    assert (revealed.state, revealed.commit_block, revealed.commit_block_exact) == (Status.REVEALED, done.block, True)
    assert revealed.reveal_block == done.block + REVEAL
    assert revealed.payload.url == URL
    assert revealed.submission_id == sealed.submission_id


async def test_rows_are_provisional_until_they_are_finalised(world):  # noqa: F811
    await world.chain.commit(payload(), world.miner, REVEAL)
    await world.blocks(2)
    (row,) = await finalised(world.chain)
    assert not row.provisional
    await world.chain.commit(payload("b"), world.validator, REVEAL)
    head = await world.chain.head()
    assert [r.provisional for r in await world.chain.commitments(head.best_hash)].count(True) >= 1 or head.best == head.finalized


async def test_any_bytes_are_a_row_and_hide_no_other(world):  # noqa: F811
    texts = [b"", b"0x41", b"\x80A", b"plain", b"\xff\xff\xff\xff", b"\x03", b"a" * 900, payload("c"), payload("d")[2:], b'{"a":1}']
    world.net.set_reveals(NETUID, world.miner.hotkey.ss58_address, [(text, 10 + i) for i, text in enumerate(texts)])
    world.net.set_reveals(NETUID, world.validator.hotkey.ss58_address, [(payload("e"), 11)])
    await world.blocks(30)
    rows = await world.chain.commitments()
    mine = [r for r in rows if r.hotkey == world.miner.hotkey.ss58_address]
    assert [r.state for r in mine] == [Status.REJECTED] * 7 + [Status.REVEALED] * 2 + [Status.REJECTED]
    assert {r.reason.code for r in mine if r.reason} == {1001}
    assert mine[1].raw == "0x41", "text that looks like hex stays text"
    assert [r.payload.sha256[0] for r in rows if r.payload] == ["e", "c", "d"]


async def test_a_damaged_storage_value_hides_no_other_row(world):  # noqa: F811
    await world.chain.commit(payload(), world.miner, REVEAL)
    key = world.net.chain.state.key("Commitments", "RevealedCommitments", NETUID, world.validator.hotkey.ss58_address)
    with world.net.chain.patching() as env:
        env.state.storage.put(key, b"\x09\xff\xff")
    await world.blocks(REVEAL)
    by_hotkey = {r.hotkey: r for r in await world.chain.commitments()}
    assert by_hotkey[world.miner.hotkey.ss58_address].state is Status.REVEALED
    assert "damaged" in by_hotkey[world.validator.hotkey.ss58_address].reason.message


async def test_an_overwritten_seal_is_told_and_the_new_one_counts(world):  # noqa: F811
    first = await world.chain.commit(payload("a"), world.miner, REVEAL)
    await world.chain.commitments()
    second = await world.chain.commit(payload("b"), world.miner, REVEAL)
    assert brief(await world.chain.commitments()) == [(first.block, Status.REJECTED, 1003), (second.block, Status.SEALED, 0)]


async def test_a_seal_that_cannot_be_opened_is_a_failed_reveal(world):  # noqa: F811
    call = chains.bt.calls.Commitments.set_commitment(
        netuid=NETUID, info={"fields": [[{"TimelockEncrypted": {"encrypted": b"no ciphertext at all", "reveal_round": 1000}}]]})
    done = await world.chain._sender.send(call, world.miner.hotkey, "a bad seal")
    await world.blocks(REVEAL)
    assert brief(await world.chain.commitments()) == [(done.block, Status.REJECTED, 1002)]


async def test_a_deregistered_hotkeys_commitment_is_rejected_and_re_registration_does_not_revive_it(world):  # noqa: F811
    hotkey = world.miner.hotkey.ss58_address
    done = await world.chain.commit(payload(), world.miner, REVEAL)
    await world.blocks(REVEAL)
    world.net.replace(NETUID, world.net.uid(NETUID, hotkey), world.wallet("other", register=False).hotkey.ss58_address)
    await world.blocks()
    assert brief(await world.chain.commitments()) == [(done.block, Status.REJECTED, 1006)]
    world.net.register(NETUID, hotkey)
    await world.blocks()
    (row,) = await world.chain.commitments()
    assert (row.state, row.uid) == (Status.REJECTED, world.net.uid(NETUID, hotkey))
    assert "registered anew" in row.reason.message
    again = await world.chain.commit(payload("b"), world.miner, REVEAL)
    await world.blocks(REVEAL)
    assert brief(await world.chain.commitments())[-1] == (again.block, Status.REVEALED, 0)


async def test_a_commitment_on_a_fork_that_lost_is_withdrawn_at_finality(tmp_path):
    async with open_world(tmp_path, sealing="manual", finality_lag=5) as w:
        await w.blocks(10)

        async def include():
            await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)
            await w.blocks()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(include)
            done = await w.chain.commit(payload(), w.miner, REVEAL)
        assert brief(await w.chain.commitments()) == [(done.block, Status.SEALED, 0)]
        await trio.to_thread.run_sync(lambda: w.net.reorganize(1, keep_extrinsics=False))
        await w.blocks()
        assert brief(await w.chain.commitments()) == [], "at the best head it may come back"
        await w.blocks(5)
        assert brief(await finalised(w.chain)) == [(done.block, Status.REJECTED, 1008)]


async def test_commit_blocks_are_found_in_history_by_a_validator_that_never_saw_the_seals(world):  # noqa: F811
    first = await world.chain.commit(payload("a"), world.miner, REVEAL)
    await world.blocks(REVEAL)
    second = await world.chain.commit(payload("b"), world.miner, REVEAL)
    await world.blocks(REVEAL)
    async with world.another() as fresh:
        assert [(r.commit_block, r.commit_block_exact) for r in await fresh.commitments()] == [(first.block, True), (second.block, True)]


async def test_where_the_history_is_pruned_only_the_newest_or_a_remembered_commit_block_is_exact(tmp_path):
    async with open_world(tmp_path) as w:
        first = await w.chain.commit(payload("a"), w.miner, REVEAL)
        await w.blocks(REVEAL)
        second = await w.chain.commit(payload("b"), w.miner, REVEAL)
        await w.blocks(40)
        stored = await finalised(w.chain)
        await trio.to_thread.run_sync(w.net.prune, 5)
        async with w.another() as fresh:
            old, new = await fresh.commitments()
        assert (old.commit_block, old.commit_block_exact) == (old.reveal_block, False)
        assert (new.commit_block, new.commit_block_exact) == (second.block, True)
        async with w.another() as told:
            told.learn(stored)
            assert [(r.commit_block, r.commit_block_exact) for r in await told.commitments()] == [(first.block, True), (second.block, True)]


async def test_a_full_subnets_commitments_are_all_read(world):  # noqa: F811
    hotkeys = [chains.core.Keypair.create_from_uri(f"//m{i}").ss58_address for i in range(250)]
    for i, hotkey in enumerate(hotkeys):
        world.net.register(NETUID, hotkey)
        world.net.set_reveals(NETUID, hotkey, [(payload("abcdef"[i % 6]), 1)])
    await world.blocks()
    rows = await world.chain.commitments()
    assert sorted(r.hotkey for r in rows) == sorted(hotkeys)
    assert all(r.state is Status.REVEALED for r in rows)


async def test_one_hotkeys_rows_can_be_asked_for_alone(world):  # noqa: F811
    await world.chain.commit(payload("a"), world.miner, REVEAL)
    await world.chain.commit(payload("b"), world.validator, REVEAL)
    rows = await world.chain.commitments(hotkey=world.miner.hotkey.ss58_address)
    assert [r.hotkey for r in rows] == [world.miner.hotkey.ss58_address]
    assert await world.chain.commitments(hotkey=chains.core.Keypair.create_from_uri("//nobody").ss58_address) == []


async def test_an_unregistered_hotkey_cannot_commit_and_is_told_why(world):  # noqa: F811
    with pytest.raises(Refused, match=r"(?i)regist"):
        await world.chain.commit(payload(), world.wallet("stranger", register=False), REVEAL)


# ------------------------------------------------------------------------------------------------ weights


async def test_plain_weights_are_set_and_read_back_equal(world):  # noqa: F811
    plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 0.8, (await world.chain.owner()).hotkey: 0.2})
    assert plan.refused == ()
    told = []
    outcome = await world.chain.set_weights(plan, signed=told.append)
    held = await world.chain.read_weights()
    assert arrived(plan.by_uid, held.by_uid)
    assert held.last_update == outcome.block
    assert not foreign_update(held.last_update, windows(told))


async def test_sealed_weights_are_committed_and_apply_an_epoch_later(tmp_path):
    async with open_world(tmp_path, commit_reveal=True, tempo=10) as w:
        plan = await w.chain.preflight_weights({w.miner.hotkey.ss58_address: 1.0})
        assert plan.commit_reveal
        outcome = await w.chain.set_weights(plan)
        assert outcome.sealed
        held = await w.chain.read_weights()
        assert (held.by_uid, held.pending_commits, held.last_update) == ({}, 1, outcome.block)
        await w.blocks(25)
        held = await w.chain.read_weights()
        assert (held.by_uid, held.pending_commits) == (plan.by_uid, 0)


async def test_the_rate_limit_is_seen_before_sending(tmp_path):
    async with open_world(tmp_path, weights_rate_limit=30) as w:
        await w.blocks(31)
        weights = {w.miner.hotkey.ss58_address: 1.0}
        await w.chain.set_weights(await w.chain.preflight_weights(weights))
        sent = w.calls("author_submitExtrinsic")
        plan = await w.chain.preflight_weights(weights)
        assert plan.retry_block is not None
        with pytest.raises(Refused, match="the subnet allows it each 30 blocks"):
            await w.chain.set_weights(plan)
        assert w.calls("author_submitExtrinsic") == sent
        await w.blocks(plan.retry_block - plan.block - 1)
        assert (await w.chain.preflight_weights(weights)).refused == ()


@pytest.mark.parametrize(("change", "words"), [
    (lambda w: w.net.set_stake(NETUID, w.chain.hotkey, 0), "add stake"),
    (lambda w: w.net.set_hyperparameter(NETUID, "WeightsVersionKey", 9), "version key 9"),
    (lambda w: w.net.set_hyperparameter(NETUID, "MinAllowedWeights", 3), "at least 3 weights"),
    (lambda w: w.net.set_hyperparameter(NETUID, "MaxWeightsLimit", 30000), "the subnet allows 45.8%"),
    (lambda w: w.net.replace(NETUID, w.net.uid(NETUID, w.chain.hotkey), w.wallet("x", register=False).hotkey.ss58_address), "register it"),
])
async def test_the_chains_rules_are_read_from_the_chain(tmp_path, change, words):
    async with open_world(tmp_path, stake_threshold=10**9) as w:
        change(w)
        await w.blocks()
        plan = await w.chain.preflight_weights({w.miner.hotkey.ss58_address: 1.0})
        assert words in "; ".join(plan.refused)


async def test_a_plan_that_no_longer_holds_is_not_sent(world):  # noqa: F811
    plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
    await world.blocks(6)
    with pytest.raises(ChainError, match="stale"):
        await world.chain.set_weights(plan)
    assert world.calls("author_submitExtrinsic") == 0


async def test_another_process_with_our_hotkey_is_noticed(world):  # noqa: F811
    weights = {world.miner.hotkey.ss58_address: 1.0}
    told = []
    await world.chain.set_weights(await world.chain.preflight_weights(weights), signed=told.append)
    await world.blocks(40)
    async with world.another() as twin:
        await twin.set_weights(await twin.preflight_weights(weights))
    assert foreign_update((await world.chain.read_weights()).last_update, windows(told))


async def test_weights_whose_signature_took_long_are_where_the_journal_says(world):  # noqa: F811
    """The nonce comes so late that they are in a block far after the plan's: that is no other process."""
    plan, told = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0}), []
    world.fault("slow", "account_nextIndex", seconds=0.5)
    async with trio.open_nursery() as nursery:
        async def age():
            while not world.calls("account_nextIndex"):  # noqa: ASYNC110 - what is waited for is in the node's log
                await trio.sleep(0.01)
            await world.blocks(60)

        nursery.start_soon(age)
        outcome = await world.chain.set_weights(plan, signed=told.append)
    assert outcome.block > plan.block + 50
    assert not foreign_update((await world.chain.read_weights()).last_update, windows(told))


async def test_what_was_signed_is_written_down_before_it_is_sent(world):  # noqa: F811
    sent_before = []

    async def write(_):
        sent_before.append(world.calls("author_submitExtrinsic"))

    await world.chain.set_weights(await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0}), signed=write)
    assert sent_before == [0]


# ------------------------------------------------------------------------------------------------ unknown outcomes


@pytest.mark.parametrize("kind", ["drop", "close"])
async def test_an_extrinsic_whose_answer_was_lost_is_found_and_not_sent_twice(world, kind):  # noqa: F811
    world.fault(kind, "author_submitExtrinsic", carried_out=True)
    plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
    await world.chain.set_weights(plan)
    assert world.calls("author_submitExtrinsic") == 1
    assert (await world.chain.read_weights()).by_uid == plan.by_uid


async def test_weights_that_vanished_are_looked_for_until_they_can_no_longer_come(tmp_path):
    settings = chains.hparams.Chain(call_deadline=2.0, redial_first=0.05, redial_max=0.2, weights_deadline=0.4)
    async with open_world(tmp_path, settings, sealing="interval", block_time=0.1) as w:
        weights = {w.miner.hotkey.ss58_address: 1.0}
        w.fault("lose", "author_submitExtrinsic")
        with pytest.raises(Unresolved) as caught:
            await w.chain.set_weights(await w.chain.preflight_weights(weights))
        sent = caught.value.sent
        with pytest.raises(Unresolved):
            await w.chain.set_weights(await w.chain.preflight_weights(weights))
        assert w.calls("author_submitExtrinsic") == 1, "nothing is sent while it may still come"
        await w.blocks(sent.last + 3)
        assert await w.chain.resolve(sent) is None
        plan = await w.chain.preflight_weights(weights)
        await w.chain.set_weights(plan)
        assert (await w.chain.read_weights()).by_uid == plan.by_uid


async def test_a_best_head_asked_for_before_the_finalised_one_loses_no_extrinsic(world):  # noqa: F811
    """Many blocks may come between the two questions; what lies in those is there, and sending it again would be wrong."""
    told = []
    included = await world.chain.set_weights(await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0}), signed=told.append)
    earlier = world.net.chain.ledger[included.block - 1].hash
    await world.blocks(told[0].last + 3)
    world.fault("wrong", "chain_getHead", count=None, result=earlier)
    head = await world.chain.head()
    assert head.best >= head.finalized > told[0].last
    assert (await world.chain.resolve(told[0])).block == included.block


@pytest.mark.parametrize("skip", range(8))
async def test_the_last_block_that_is_written_down_is_the_last_that_the_chain_takes(tmp_path, skip):
    """Whichever of the questions before the signature a node answers that is behind: giving up early means sending twice."""
    async with open_world(tmp_path, sealing="manual", finality_lag=2) as w:
        await w.blocks(40)
        await w.chain.check()
        told, lasts = [], []
        w.fault("wrong", "chain_getFinalizedHead", skip=skip, result=w.net.chain.ledger[w.net.chain.ledger.finalized.number - 6].hash)

        async def include():
            await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)
            lasts.extend(waiting.dies_at - 1 for waiting in w.net.chain.pool)
            await w.blocks()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(include)
            await w.chain.commit(payload(), w.miner, REVEAL, signed=told.append)
        assert [sent.last for sent in told] == lasts


async def test_an_extrinsic_that_expired_says_that_sending_again_is_safe(world):  # noqa: F811
    world.fault("lose", "author_submitExtrinsic")
    async with trio.open_nursery() as nursery:
        async def age():
            await trio.to_thread.run_sync(world.net.chain.wait_pool, 1, 5.0)
            await world.blocks(30)

        nursery.start_soon(age)
        with pytest.raises(Expired, match="safe to send again"):
            await world.chain.commit(payload(), world.miner, REVEAL)


# ------------------------------------------------------------------------------------------------ upgrades


async def test_an_upgrade_that_takes_something_away_holds_weights_and_keeps_reading(world):  # noqa: F811
    await world.chain.check()
    weights = {world.miner.hotkey.ss58_address: 1.0}
    world.net.upgrade("set_mechanism_weights")
    await world.blocks(3)
    await world.chain.head()
    assert "set_mechanism_weights" in world.chain.problem
    with pytest.raises(ChainIncompatible, match="set_mechanism_weights"):
        await world.chain.preflight_weights(weights)
    assert await world.chain.neurons()
    assert await world.chain.commitments() == []
    world.net.upgrade()
    await world.blocks(3)
    await world.chain.head()
    assert world.chain.problem == ""
    plan = await world.chain.preflight_weights(weights)
    await world.chain.set_weights(plan)
    assert (await world.chain.read_weights()).by_uid == plan.by_uid


# ------------------------------------------------------------------------------------------------ wallets


def test_a_missing_wallet_is_told_with_what_there_is(tmp_path):
    chains.create_wallet("mine", "hot", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no hotkey 'cold' of wallet 'mine'.*holds hot\."):
        chains.open_wallet("mine", "cold", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds mine\."):
        chains.open_wallet("yours", "hot", str(tmp_path))
    with pytest.raises(ConfigError, match="bad wallet name"):
        chains.open_wallet("a/b", "c", str(tmp_path))


def test_a_damaged_or_encrypted_key_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("BT_WALLET_PASSWORD", raising=False)
    chains.create_wallet("w", "plain", str(tmp_path))
    chains.bt.Wallet("w", "locked", str(tmp_path)).create_new_hotkey(hotkey_password="right", suppress=True)
    with pytest.raises(ConfigError, match="encrypted: run this in a terminal"):
        chains.open_wallet("w", "locked", str(tmp_path))
    with pytest.raises(ConfigError, match="wrong password"):
        chains.open_wallet("w", "locked", str(tmp_path), password=lambda _: "wrong")
    (tmp_path / "w" / "hotkeys" / "plain").write_bytes(b"not a key")
    with pytest.raises(ConfigError, match=r"damaged|cannot be opened"):
        chains.open_wallet("w", "plain", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_key_is_told(tmp_path):
    chains.create_wallet("w", "h", str(tmp_path))
    (tmp_path / "w" / "hotkeys" / "h").chmod(0)
    with pytest.raises(ConfigError, match="check who owns"):
        chains.open_wallet("w", "h", str(tmp_path))


async def test_weights_without_a_wallet_are_a_config_error(world):  # noqa: F811
    async with chains.open_chain(SETTINGS, world.net.url, NETUID, world.bridge) as chain:
        with pytest.raises(ConfigError, match="needs a wallet"):
            await chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})


async def test_weights_that_a_reorganisation_moved_to_an_earlier_block_are_still_ours(tmp_path):
    async with open_world(tmp_path, sealing="manual", finality_lag=6) as w:
        await w.blocks(25)
        plan, told = await w.chain.preflight_weights({w.miner.hotkey.ss58_address: 1.0}), []

        async def blocks():
            await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)
            await w.blocks()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocks)
            outcome = await w.chain.set_weights(plan, signed=told.append)
        await trio.to_thread.run_sync(lambda: w.net.reorganize(3, keep_extrinsics=True))
        await w.blocks(3)
        held = await w.chain.read_weights()
        assert held.by_uid == plan.by_uid
        assert held.last_update < min(outcome.block, plan.block + 1)
        assert not foreign_update(held.last_update, windows(told))


async def test_what_is_read_is_what_the_start_checks_to_the_item(world, monkeypatch):  # noqa: F811
    """Nothing is used that is not looked for at the start, and nothing is asked for that is not used."""
    used = set()
    key = State.key

    def noted(state, pallet, item, *params):
        used.add((pallet, item))
        return key(state, pallet, item, *params)

    monkeypatch.setattr(State, "key", noted)
    await world.chain.check()
    await world.chain.commit(payload(), world.miner, REVEAL)
    await world.blocks(REVEAL)
    await world.chain.commitments()
    await world.chain.commit_facts(world.miner.hotkey.ss58_address)
    await world.chain.neurons()
    await world.chain.owner()
    plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
    await world.chain.set_weights(plan)
    await world.chain.read_weights()
    world.chain.settings = chains.hparams.Chain(fee_rao=10**9, fee_address=world.validator.coldkeypub.ss58_address)
    await world.chain.receipt(await world.chain.pay_fee(world.miner))
    optional = {("SubtensorModule", "SubnetEpochConsensus")}
    needed = {(pallet, item) for pallet, items in STORAGE.items() for item in items}
    assert used - optional == needed


@pytest.mark.parametrize("hidden", ["CommitmentOf", "TimelockedWeightCommits", "set_commitment", "transfer_keep_alive", "WeightsSetRateLimit"])
async def test_the_start_names_what_the_runtime_lacks(world, hidden):  # noqa: F811
    world.net.upgrade(hidden)
    await world.blocks(3)
    facts = await world.chain.check()
    assert [hidden in one for one in facts.missing] == [True]
