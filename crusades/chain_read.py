"""Readers: what we want to know of the chain, as questions to one block's raw storage. Runs on the asyncio thread.

Knows no SDK: `Node` below is all that is asked of the connection, and the codec decodes one value at a time. Every reader
takes a `State`, so everything it returns was true at one block.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from crusades.chain_records import CommitFacts, NoArchive, Owner, Pruned, Receipt
from crusades.chain_rows import HotkeyState, Live, Reveal, Sightings, decode_reveals, read_live
from crusades.chain_weights import Epoch, OnChainWeights, WeightsFacts, owner_uid
from crusades.errors import ChainError, ChainIncompatible
from crusades.records import Neuron

log = logging.getLogger("crusades.chain")

BATCH = 400
"""Storage keys asked for in one request."""
LOOKUPS = 48
"""Distinct reveal blocks whose history is read in one go; the rest follows with the next read."""
RAO = 1e9

SUBTENSOR = "SubtensorModule"


class Node(Protocol):
    """One connection."""

    async def rpc(self, method: str, *params: Any) -> Any:
        """A JSON-RPC question."""
        ...

    async def block_hash(self, number: int) -> str:
        """Hash of a block by number."""
        ...

    async def state_call(self, api: str, method: str, params: list[Any], block_hash: str) -> Any:
        """A decoded runtime API answer."""
        ...

    async def old_values(self, pallet: str, item: str, keys: list[list[Any]], block_hash: str) -> list[Any]:
        """Decoded values at an older block, from an archive endpoint where there is one. Raises Pruned and NoArchive."""
        ...


class State:
    """The storage at one block, through the codec that wrote it."""

    def __init__(self, node: Node, number: int, block_hash: str, runtime: Any) -> None:
        self.node, self.number, self.hash, self.runtime = node, number, block_hash, runtime

    def key(self, pallet: str, item: str, *params: Any) -> str:
        """Storage key (or, with fewer params than keys, prefix) in hex."""
        try:
            return "0x" + bytes(self.runtime.storage_key(pallet, item, list(params))).hex()
        except KeyError as error:
            raise ChainIncompatible(f"the runtime has no storage {pallet}.{item}") from error

    def has(self, pallet: str, item: str) -> bool:
        """Whether the runtime has this storage item."""
        try:
            self.runtime.storage_entry(pallet, item)
        except KeyError:
            return False
        return True

    async def raw(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        """Values as bytes, by key."""
        found: dict[str, bytes | None] = dict.fromkeys(keys)
        for start in range(0, len(keys), BATCH):
            for group in await self.node.rpc("state_queryStorageAt", list(keys[start:start + BATCH]), self.hash):
                found.update({key: None if value is None else unhex(value) for key, value in group["changes"]})
        return found

    async def keys(self, pallet: str, item: str, *params: Any) -> list[str]:
        """All keys under a prefix."""
        prefix = self.key(pallet, item, *params)
        found: list[str] = []
        while True:
            page = await self.node.rpc("state_getKeysPaged", prefix, BATCH, found[-1] if found else prefix, self.hash)
            found += page
            if len(page) < BATCH:
                return found

    def last_key(self, pallet: str, item: str, key: str) -> Any:
        """The second part of the key of a double map."""
        return self.runtime.decode_storage_key_params(pallet, item, unhex(key), 1)[0]

    def decode(self, pallet: str, item: str, value: bytes | None) -> Any:
        """A value, or the item's default, or None. ValueError when the bytes are no such value."""
        entry = self.runtime.storage_entry(pallet, item)
        if value is not None:
            return self.runtime.decode(entry.value_type, value, True)
        return self.runtime.decode(entry.value_type, bytes(entry.default_bytes), True) if entry.modifier == "Default" else None

    async def read(self, *wanted: tuple[Any, ...]) -> list[Any]:
        """Several items in one request: each (pallet, item, *params); answers in that order."""
        keys = [self.key(*one) for one in wanted]
        found = await self.raw(keys)
        return [self.decode(one[0], one[1], found[key]) for one, key in zip(wanted, keys, strict=True)]


def unhex(text: str) -> bytes:
    """Bytes of a 0x-hex answer."""
    return bytes.fromhex(text.removeprefix("0x"))


# ------------------------------------------------------------------------------------------------ neurons


async def graph(state: State, netuid: int) -> dict[str, Any]:
    """The runtime's metagraph. ChainError when the subnet does not exist."""
    found = await state.node.state_call("SubnetInfoRuntimeApi", "get_metagraph", [netuid], state.hash)
    if found is None:
        raise ChainError(f"subnet {netuid} does not exist")
    return dict(found)


def neurons_of(metagraph: dict[str, Any]) -> list[Neuron]:
    """All registered keys, by uid."""
    columns = zip(metagraph["hotkeys"], metagraph["coldkeys"], metagraph["total_stake"], metagraph["validator_permit"],
                  metagraph["block_at_registration"], metagraph["last_update"], strict=True)
    return [Neuron(uid=uid, hotkey=str(hotkey), coldkey=str(coldkey), stake=int(stake) / RAO, validator_permit=bool(permit),
                   registered_block=int(registered), last_update=int(updated))
            for uid, (hotkey, coldkey, stake, permit, registered, updated) in enumerate(columns)]


async def owner(state: State, netuid: int) -> Owner:
    """Who owns the subnet, resolved to a uid at this block."""
    (hotkey, coldkey), metagraph = await asyncio.gather(
        state.read((SUBTENSOR, "SubnetOwnerHotkey", netuid), (SUBTENSOR, "SubnetOwner", netuid)), graph(state, netuid))
    return Owner(hotkey=str(hotkey), coldkey=str(coldkey), uid=owner_uid(neurons_of(metagraph), str(hotkey), str(coldkey)))


# ------------------------------------------------------------------------------------------------ commitments


async def hotkey_states(state: State, netuid: int, only: str | None = None) -> dict[str, HotkeyState]:
    """Every hotkey (or one) that has a live commitment or a reveal, registered or not. A damaged value hides nothing else."""
    if only is None:
        live, opened = await asyncio.gather(state.keys("Commitments", "CommitmentOf", netuid), state.keys("Commitments", "RevealedCommitments", netuid))
    else:
        live, opened = [state.key("Commitments", "CommitmentOf", netuid, only)], [state.key("Commitments", "RevealedCommitments", netuid, only)]
    live_of = {str(state.last_key("Commitments", "CommitmentOf", key)): key for key in live}
    opened_of = {str(state.last_key("Commitments", "RevealedCommitments", key)): key for key in opened}
    hotkeys = sorted(live_of.keys() | opened_of.keys())
    uid_key = {h: state.key(SUBTENSOR, "Uids", netuid, h) for h in hotkeys}
    last_key = {h: state.key("Commitments", "LastCommitment", netuid, h) for h in hotkeys}
    found = await state.raw([*live, *opened, *uid_key.values(), *last_key.values()])
    uids = {h: state.decode(SUBTENSOR, "Uids", found[key]) for h, key in uid_key.items()}
    registered = await _registered(state, netuid, [uid for uid in uids.values() if uid is not None])
    states = {}
    for hotkey in hotkeys:
        damaged = []
        record: Live | None = None
        reveals: tuple[Reveal, ...] = ()
        if hotkey in live_of and (value := found[live_of[hotkey]]) is not None:
            try:
                record = read_live(state.decode("Commitments", "CommitmentOf", value))
            except (ValueError, LookupError, TypeError) as error:
                damaged.append(f"its live commitment cannot be decoded: {error}")
        if hotkey in opened_of and (value := found[opened_of[hotkey]]) is not None:
            try:
                reveals = decode_reveals(value)
            except ValueError as error:
                damaged.append(f"its opened commitments cannot be decoded: {error}")
        uid, last = uids[hotkey], state.decode("Commitments", "LastCommitment", found[last_key[hotkey]])
        states[hotkey] = HotkeyState(hotkey, uid=uid, registered_block=registered.get(uid, 0), live=record, reveals=reveals,
                                     last_commitment=None if last is None else int(last), damaged="; ".join(damaged))
    return states


async def _registered(state: State, netuid: int, uids: Iterable[int]) -> dict[int, int]:
    wanted = sorted(set(uids))
    blocks = await state.read(*((SUBTENSOR, "BlockAtRegistration", netuid, uid) for uid in wanted)) if wanted else []
    return {uid: int(block or 0) for uid, block in zip(wanted, blocks, strict=True)}


async def look_up(state: State, netuid: int, states: Iterable[HotkeyState], seen: Sightings, *, final: bool) -> set[tuple[str, int]]:
    """Find the commit block of every reveal that nobody has looked up yet; at most `LOOKUPS` blocks of history at a time.

    Returns the (hotkey, reveal block) pairs that had to be left for the next read.
    """
    wanted: dict[int, list[tuple[str, Reveal]]] = defaultdict(list)
    for one in states:
        newest = max((r.block for r in one.reveals), default=0)
        for reveal in seen.unknown(one, final=final):
            if one.last_commitment is not None and reveal.block == newest and one.last_commitment < newest:
                # The newest commitment is not newer than the newest reveal, so it is the one that was opened there.
                seen.remember(one.hotkey, reveal, one.last_commitment, final=final)
            else:
                wanted[reveal.block].append((one.hotkey, reveal))
    late = set(wanted)
    for block in sorted(wanted, reverse=True)[:LOOKUPS]:
        try:
            found = await _live_before(state, netuid, wanted[block], block)
        except NoArchive as error:  # older blocks would fare no better; what needs no archive is shown meanwhile
            log.debug("%s", error)
            break
        for (hotkey, reveal), commit_block in zip(wanted[block], found, strict=True):
            seen.remember(hotkey, reveal, commit_block, final=final)
        late.discard(block)
    return {(hotkey, block) for block in late for hotkey, _ in wanted[block]}


async def _live_before(state: State, netuid: int, rows: Sequence[tuple[str, Reveal]], block: int) -> list[int | None]:
    """Commit blocks of what was live one block before `block`; None where the chain no longer says."""
    try:
        found = await state.node.old_values("Commitments", "CommitmentOf", [[netuid, hotkey] for hotkey, _ in rows],
                                            await state.node.block_hash(block - 1))
    except Pruned:
        return [None] * len(rows)
    blocks = [None if record is None else int(record["block"]) for record in found]
    return [b if b is not None and b < block else None for b in blocks]


# ------------------------------------------------------------------------------------------------ weights


async def weights_facts(state: State, netuid: int, hotkey: str) -> WeightsFacts:
    """Everything that the chain's checks look at."""
    exists, = await state.read((SUBTENSOR, "NetworksAdded", netuid))
    if not exists:
        return WeightsFacts(netuid=netuid, hotkey=hotkey, block=state.number, block_hash=state.hash, exists=False, neurons=(), epoch=Epoch(tempo=1))
    per_subnet = ("CommitRevealWeightsEnabled", "WeightsSetRateLimit", "WeightsVersionKey", "MinAllowedWeights", "MaxWeightsLimit",
                  "SubnetOwnerHotkey", "Tempo", "RevealPeriodEpochs", "LastEpochBlock", "PendingEpochAt", "SubnetEpochIndex",
                  "BlocksSinceLastStep", *(("SubnetEpochConsensus",) if state.has(SUBTENSOR, "SubnetEpochConsensus") else ()))
    values, whole, metagraph = await asyncio.gather(
        state.read(*((SUBTENSOR, item, netuid) for item in per_subnet)),
        state.read((SUBTENSOR, "CommitRevealWeightsVersion"), (SUBTENSOR, "StakeThreshold")), graph(state, netuid))
    v = dict(zip(per_subnet, values, strict=True))
    pending, = await state.read((SUBTENSOR, "TimelockedWeightCommits", netuid, int(v["SubnetEpochIndex"] or 0)))
    return WeightsFacts(
        netuid=netuid, hotkey=hotkey, block=state.number, block_hash=state.hash, exists=True, neurons=tuple(neurons_of(metagraph)),
        owner_hotkey=str(v["SubnetOwnerHotkey"]), commit_reveal=bool(v["CommitRevealWeightsEnabled"]), commit_reveal_version=int(whole[0]),
        version_key=int(v["WeightsVersionKey"] or 0), rate_limit=int(v["WeightsSetRateLimit"] or 0), min_allowed=int(v["MinAllowedWeights"] or 0),
        max_weight=int(v["MaxWeightsLimit"]), stake_threshold=int(whole[1] or 0) / RAO, pending_commits=_mine(pending, hotkey),
        null_consensus=v.get("SubnetEpochConsensus") in (1, "Null", {"Null": None}),
        epoch=Epoch(tempo=int(v["Tempo"]), last_epoch_block=int(v["LastEpochBlock"] or 0), pending_epoch_at=int(v["PendingEpochAt"] or 0),
                    index=int(v["SubnetEpochIndex"] or 0), blocks_since_last_step=int(v["BlocksSinceLastStep"] or 0),
                    reveal_period=int(v["RevealPeriodEpochs"] or 1)))


def _mine(commits: Any, hotkey: str) -> int:
    return sum(1 for row in commits or () if str(row[0]) == hotkey)


async def own_weights(state: State, netuid: int, hotkey: str) -> OnChainWeights:
    """Our row of the weight matrix, when it was last touched, and what is still sealed."""
    uid, updates, tempo, period = await state.read((SUBTENSOR, "Uids", netuid, hotkey), *((SUBTENSOR, item, netuid) for item in ("LastUpdate", "Tempo", "RevealPeriodEpochs")))
    keys = await state.keys(SUBTENSOR, "TimelockedWeightCommits", netuid)
    sealed = await state.raw(keys)
    pending = sum(_mine(state.decode(SUBTENSOR, "TimelockedWeightCommits", value), hotkey) for value in sealed.values() if value is not None)
    pairs: Any = ()
    if uid is not None:
        pairs, = await state.read((SUBTENSOR, "Weights", netuid, uid))
    return OnChainWeights(block=state.number, uid=uid, by_uid={int(u): int(w) for u, w in pairs}, last_update=_updated(updates, uid),
                          pending_commits=pending, tempo=int(tempo), reveal_period=int(period or 1))


async def last_update(state: State, netuid: int, hotkey: str) -> int:
    """The block of the hotkey's newest set or commit; 0 = never."""
    uid, updates = await state.read((SUBTENSOR, "Uids", netuid, hotkey), (SUBTENSOR, "LastUpdate", netuid))
    return _updated(updates, uid)


def _updated(updates: Any, uid: int | None) -> int:
    return int(updates[uid]) if uid is not None and uid < len(updates) else 0


async def weights_sent(state: State, netuid: int, hotkey: str, public_key: bytes) -> int:
    """How many extrinsics of this block set, sealed or opened weights of the hotkey in the subnet (not those inside a batch or a proxy)."""
    answer = await state.node.rpc("chain_getBlock", state.hash)
    if answer is None:
        raise Pruned(f"the node no longer has block {state.number}")
    # Only what the key has signed is decoded (version 4, an account id): what no codec of ours knows, of whomever, is nobody's weights.
    signed = b"\x84\x00" + public_key
    candidates = [(index, raw) for index, raw in enumerate(map(unhex, answer["block"]["extrinsics"])) if signed in raw[: 4 + len(signed)]]
    found = [index for index, raw in candidates if _sets_weights(state.runtime.decode_extrinsic(raw, True), netuid, hotkey)]
    events = (await state.read(("System", "Events")))[0] or () if found else ()
    return sum(any(_succeeded(event, index) for event in events) for index in found)


async def opened_weights(state: State, netuid: int, hotkey: str) -> bool:
    """Whether the chain itself opened sealed weights of the hotkey in this block."""
    events, = await state.read(("System", "Events"))
    return any(_opens_weights(event, netuid, hotkey) for event in events or ())


def _opens_weights(record: Any, netuid: int, hotkey: str) -> bool:
    if (record.get("module_id"), record.get("event_id")) != (SUBTENSOR, "TimelockedWeightsRevealed"):
        return False
    fields = record["attributes"]
    index, who = fields.values() if isinstance(fields, dict) else fields
    return int(index) == netuid and str(who) == hotkey  # the index of the first mechanism is the subnet's number


def _sets_weights(extrinsic: Any, netuid: int, hotkey: str) -> bool:
    call = extrinsic.get("call") or {}
    arguments = {a["name"]: a["value"] for a in call.get("call_args") or ()}
    here = arguments.get("netuid") == netuid or netuid in (arguments.get("netuids") or ())
    of_weights = call.get("call_module") == SUBTENSOR and "weights" in str(call.get("call_function"))
    return of_weights and here and not arguments.get("mecid") and str(extrinsic.get("address")) == hotkey


# ------------------------------------------------------------------------------------------------ the miner's side


async def commit_facts(state: State, netuid: int, hotkey: str) -> CommitFacts:
    """Whether this hotkey may commit now, and what it would destroy or use up."""
    exists, uid, live, last, used, space, tempo, last_epoch, index, coldkey = await state.read(
        (SUBTENSOR, "NetworksAdded", netuid), (SUBTENSOR, "Uids", netuid, hotkey), ("Commitments", "CommitmentOf", netuid, hotkey),
        ("Commitments", "LastCommitment", netuid, hotkey), ("Commitments", "UsedSpaceOf", netuid, hotkey), ("Commitments", "MaxSpace"),
        (SUBTENSOR, "Tempo", netuid), (SUBTENSOR, "LastEpochBlock", netuid), (SUBTENSOR, "SubnetEpochIndex", netuid), (SUBTENSOR, "Owner", hotkey))
    if not exists:
        raise ChainError(f"subnet {netuid} does not exist")
    registered = await _registered(state, netuid, [] if uid is None else [uid])
    account, = await state.read(("System", "Account", coldkey))
    record = Live(block=0) if live is None else read_live(live)
    # Runtimes count quota epochs by the stateful index, older ones by block number: believe either, it only errs on the safe side.
    this_epoch = used is not None and int(used["last_epoch"]) in (int(index or 0), (state.number + netuid + 1) // (int(tempo) + 1))
    return CommitFacts(
        hotkey=hotkey, head=state.number, uid=uid, registered_block=registered.get(uid, 0), coldkey=str(coldkey),
        pending_block=record.block if record.rounds else None, pending_round=min(record.rounds, default=None),
        last_commitment=None if last is None else int(last), used_bytes=int(used["used_space"]) if this_epoch else 0, max_bytes=int(space),
        epoch_ends=int(last_epoch or 0) + int(tempo) + 1, balance_rao=int(account["data"]["free"]))


async def receipt(state: State, block_hash: str, number: int, index: int) -> Receipt | None:
    """The transfer that is extrinsic `index` of a block; None when that extrinsic is no transfer or does not exist."""
    answer = await state.node.rpc("chain_getBlock", block_hash)
    if answer is None:
        raise Pruned(f"the node no longer has block {number}")
    extrinsics = answer["block"]["extrinsics"]
    if index >= len(extrinsics):
        return None
    decoded = state.runtime.decode_extrinsic(unhex(extrinsics[index]), True)
    call = decoded.get("call") or {}
    if call.get("call_module") != "Balances" or call.get("call_function") not in ("transfer_keep_alive", "transfer_allow_death"):
        return None
    arguments = {a["name"]: a["value"] for a in call["call_args"]}
    destination = arguments["dest"]
    destination = next(iter(destination.values())) if isinstance(destination, dict) else destination
    events, = await state.read(("System", "Events"))
    return Receipt(id=f"{number}-{index}", block=number, signer=str(decoded["address"]), destination=str(destination),
                   amount_rao=int(arguments["value"]), success=any(_succeeded(event, index) for event in events or ()))


def _succeeded(record: Any, index: int) -> bool:
    return (record.get("extrinsic_idx"), record.get("module_id"), record.get("event_id")) == (index, "System", "ExtrinsicSuccess")


def filled(states: Iterable[HotkeyState], seen: Sightings, late: set[tuple[str, int]], *, final: bool) -> dict[str, HotkeyState]:
    """States with the commit blocks that are known by now, without the reveals that wait for the next read."""
    out = {}
    for one in states:
        kept = tuple(r for r in one.reveals if (one.hotkey, r.block) not in late)
        out[one.hotkey] = seen.with_commit_blocks(replace(one, reveals=kept), final=final)
    return out
