"""The chain: the only importer of the bittensor SDK (pinned exactly), through its public async client on the bridge.

What is ours here and what is the SDK's. The SDK connects, signs, seals and submits. We read storage ourselves, raw and at
one block hash per question, because the SDK's readers cut a byte off unprefixed payloads and cannot tell text from bytes
(one odd row must never hide another), and because a vector checked at one block and built at another is a race.

- Connection: `chain_link` owns it; every call has a deadline; reads are asked again after a redial, writes never.
- Writes: the extrinsic is signed first, so its hash is known; then submitted without watching; then looked for in blocks
  until its mortal era ends. A dropped connection, a restarted node or a pruned subscription changes nothing about that.
  When the deadline comes first, `Unresolved` carries the hash and the blocks in which it may still appear: `resolve` it
  before sending again.
- Runtime upgrades: every storage item, call and runtime API that we use is checked against the metadata of the running
  runtime, at the start and whenever its spec version changes. What is missing is listed; weights and commits are then
  refused with ChainIncompatible, reads that still can go on.

Dev-only, on the dev genesis and nowhere else (nobody can know future drand signatures offline): commits are sealed to the
past round 1000, and the plaintext of sealed weights is told to the node (`crusades_oracle`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import bittensor as bt
import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs
import trio
from bittensor import settings as sdk
from bittensor._transport.errors import MaxRetriesExceeded, RpcPolicyRejection, StateDiscardedError, SubstrateRequestException
from bittensor.result import chain_error_from_substrate_request

from crusades import chain_read as read
from crusades import hparams
from crusades.chain_link import Bridge, Link, Refused, Trouble
from crusades.chain_needs import missing
from crusades.chain_read import State, unhex
from crusades.chain_records import (
    ChainFacts,
    CommitFacts,
    Committed,
    Expired,
    Failed,
    Head,
    Included,
    Owner,
    Pruned,
    Receipt,
    Sent,
    Unresolved,
)
from crusades.chain_rows import Sightings, order, rows_of
from crusades.chain_weights import COMMIT_REVEAL_VERSION, OnChainWeights, WeightsOutcome, WeightsPlan, Window, plan_weights
from crusades.errors import ChainError, ChainIncompatible, ConfigError
from crusades.payload import MAX_PLAINTEXT, round_at
from crusades.records import Commitment, Neuron

log = logging.getLogger("crusades.chain")
T = TypeVar("T")

DEV_URL = "ws://127.0.0.1:9944"
DEV_GENESIS = "0x" + b"crusades-devnet\0".hex()
"""How the genesis hash of every dev chain begins; no real chain can have it."""
DEV_ROUND = 1000
"""Past drand round that commits on the dev chain are sealed to: its signature is public, so devnet can open it offline."""
ERA = 16
"""Blocks that a signed extrinsic stays valid, counted from the finalised head at signing."""
PLAN_AGE = 4
"""Blocks after which a weights plan is stale and must be made anew."""
_NOT_TAKEN = (-32601, -32602)
"""JSON-RPC codes that, beside the pool's own 1000 to 1999, prove that a submission was not taken: no such method, bad params."""


# ------------------------------------------------------------------------------------------------ networks


def endpoints_of(network: str, settings: hparams.Chain) -> tuple[list[str], list[str]]:
    """(endpoints in order, archive endpoints). ConfigError for an unknown network."""
    if network == "dev":
        return [os.environ.get("CRUSADES_DEV_URL", DEV_URL)], []
    if not network.startswith(("ws://", "wss://")) and network not in ("finney", "test", "local"):
        raise ConfigError(f"unknown network {network!r}: use finney, test, local, dev or a ws:// address")
    label, own = sdk.resolve_endpoint(network)
    return list(dict.fromkeys([own, *settings.endpoints, *sdk.default_fallback_endpoints(label)])), sdk.default_archive_endpoints(label)


def wrong_chain(network: str, genesis: str) -> str | None:
    """Why a chain with this genesis hash is not the network that was asked for; None when it may be."""
    finney, dev = genesis == sdk.FINNEY_GENESIS_HASH, genesis.startswith(DEV_GENESIS)
    if (network == "finney") != finney and (network == "finney" or network in ("test", "local", "dev")):
        return f"it is {'finney' if finney else 'not finney'} (genesis {genesis[:18]}…)"
    if (network == "dev" and not dev) or (network == "test" and dev):
        return f"it is {'a' if dev else 'no'} crusades dev chain (genesis {genesis[:18]}…)"
    return None


# ------------------------------------------------------------------------------------------------ the asyncio side: one node


class Node:
    """One connection with the codecs of its runtimes. Everything here runs on the asyncio thread."""

    def __init__(self, substrate: bt.RpcSubstrate) -> None:
        self.substrate = substrate
        self.client = bt.Client(substrate=substrate)
        self.genesis = ""
        self.spec = 0
        """Spec version at the best head."""
        self.block_time = 12.0
        """Seconds, as the runtime's slot duration says."""
        self._runtimes: dict[int, core.Runtime] = {}
        self._states: dict[str, State] = {}
        self._lacking: dict[int, tuple[str, ...]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC question."""
        return await self.substrate.raw.rpc_request(method, list(params))

    async def begin(self) -> None:
        """Dial, and learn which chain and which runtime this is."""
        await self.substrate.connect()
        self.genesis = await self.substrate.raw.genesis_hash()
        runtime = await self.runtime(None)
        self.block_time = (runtime.constant("Aura", "SlotDuration") or 12_000) / 1000

    async def runtime(self, block_hash: str | None) -> core.Runtime:
        """The codec of the runtime at a block (best head when None)."""
        version = await self.rpc("state_getRuntimeVersion", block_hash)
        spec = int(version["specVersion"])
        if block_hash is None:
            self.spec = spec
        if spec not in self._runtimes:
            blob = unhex(await self.rpc("state_call", "Metadata_metadata_at_version", "0x0f000000", block_hash))
            self._runtimes[spec] = core.Runtime(blob[blob.index(b"meta"):], spec, int(version["transactionVersion"]), sdk.SS58_FORMAT)
        return self._runtimes[spec]

    async def state(self, block_hash: str | None = None) -> State:
        """The storage at a block (best head when None), decoded by the runtime of its parent, which wrote it."""
        block_hash = block_hash or await self.rpc("chain_getHead")
        if block_hash not in self._states:
            header = await self.rpc("chain_getHeader", block_hash)
            if header is None:
                raise ChainError(f"the node does not know block {block_hash}")
            number = int(header["number"], 16)
            runtime = await self.runtime(header["parentHash"] if number else block_hash)
            if len(self._states) > 16:
                self._states.clear()
            self._states[block_hash] = State(self, number, block_hash, runtime)
        return self._states[block_hash]

    async def head(self) -> Head:
        """Both heads; and the spec version, by the way."""
        best_hash, final_hash, _ = await asyncio.gather(self.rpc("chain_getHead"), self.rpc("chain_getFinalizedHead"), self.runtime(None))
        best, final = await asyncio.gather(self.rpc("chain_getHeader", best_hash), self.rpc("chain_getHeader", final_hash))
        if best is None or final is None:
            raise ChainError("the node does not know its own head")
        return Head(best=int(best["number"], 16), best_hash=best_hash, finalized=int(final["number"], 16), finalized_hash=final_hash)

    async def block_hash(self, number: int) -> str:
        """Hash of a block by number. ChainError when the node has none."""
        found = await self.rpc("chain_getBlockHash", number)
        if not isinstance(found, str):
            raise ChainError(f"the node has no block {number}")
        return found

    async def state_call(self, api: str, method: str, params: list[Any], block_hash: str) -> Any:
        """A decoded runtime API answer."""
        return await self.substrate.runtime_call(api, method, params, block_hash)

    async def old_values(self, pallet: str, item: str, keys: list[list[Any]], block_hash: str) -> list[Any]:
        """Decoded values at an older block: the SDK asks its archive endpoints when the node has pruned it."""
        try:
            return list(await self.substrate.query_batch(pallet, item, keys, block_hash))
        except bt.ChainError as error:
            if _is_pruned(str(error)):
                raise Pruned(str(error)) from error
            raise

    def lacking(self) -> tuple[str, ...]:
        """What the runtime at the best head lacks of what we use."""
        if self.spec not in self._lacking:
            runtime = self._runtimes[self.spec]
            apis = [{"name": name, "methods": methods} for name, methods in runtime.runtime_api_map().items()]
            self._lacking[self.spec] = missing(runtime.metadata_ir() | {"runtime_apis": apis},
                                               lambda pallet, item: len(runtime.storage_entry(pallet, item).param_types))
        return self._lacking[self.spec]

    async def next_block(self) -> None:
        """Return when a new best block is announced. Raises what ended the subscription, and subscribes anew next time."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._listen())
        pump, news = self._pump, asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({news, pump}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if pump.done():
            self._pump = None
            if pump.cancelled():
                raise ConnectionError("the connection was hung up")
            pump.result()
        self._news.clear()

    async def _listen(self) -> None:
        async for _header in self.client.blocks():
            self._news.set()

    async def end(self) -> None:
        """Hang up. The subscription ends first, and by force where it waits for a dead node: the SDK would dial again to unsubscribe."""
        pump, self._pump = self._pump, None
        for _ in range(3):
            if pump is None or pump.done():
                break
            pump.cancel()
            await asyncio.wait({pump}, timeout=0.2)
        if pump is not None and pump.done() and not pump.cancelled():
            pump.exception()  # it has been told already, or nobody cares any more
        await self.substrate.close()

    async def submit(self, data: str) -> None:
        """Hand a signed extrinsic to the pool, once. Refused with the chain's reason; any other error leaves it open."""
        try:
            await self.rpc("author_submitExtrinsic", data)
        except RpcPolicyRejection:
            raise
        except SubstrateRequestException as error:
            if error.payload is None:
                raise
            if "already imported" in str(error).lower():
                return
            code = ((error.payload or {}).get("error") or {}).get("code", 0)
            if not (1000 <= code < 2000 or code in _NOT_TAKEN):
                raise ChainError(f"no clear answer: {error}") from error
            raise Refused(_in_words(chain_error_from_substrate_request(error))) from error

    async def holds(self, sent: Sent, number: int) -> Included | None:
        """The extrinsic, if block `number` holds it. ChainError when it is there and failed."""
        block_hash = await self.block_hash(number)
        answer = await self.rpc("chain_getBlock", block_hash)
        if answer is None:
            raise Pruned(f"the node no longer has block {number}")
        if sent.hash not in ("0x" + blake2b(unhex(raw), digest_size=32).hexdigest() for raw in answer["block"]["extrinsics"]):
            return None
        try:
            result = await self.substrate.find_extrinsic(sent.hash, block_hash)
        except bt.ChainError as error:
            if _is_pruned(str(error)):
                raise Pruned(f"{sent.what} is in block {number}, but the node no longer knows what became of it") from error
            raise
        if result is None:
            return None
        if not result.success:
            raise Failed(f"the chain refused {sent.what} in block {number}: {_in_words(result.error or bt.ChainError(result.message))}")
        return Included(block=number, block_hash=block_hash, extrinsic=f"{number}-{int(str(result.extrinsic_id).rpartition('-')[2])}")


def _is_pruned(text: str) -> bool:
    lowered = text.lower()
    return "discarded" in lowered or "unknownblock" in lowered or "unknown block" in lowered or "header was not found" in lowered


def _in_words(error: bt.ChainError) -> str:
    words = [f"{error.name}:" if error.name else "", error.message.strip(), error.remediation or ""]
    return " ".join(word for word in words if word)


async def _dial(network: str, archives: Sequence[str], genesis: Callable[[], str], endpoints: Sequence[str]) -> Node:
    node = Node(bt.RpcSubstrate(endpoints[0], fallback_endpoints=list(endpoints[1:]), archive_endpoints=list(archives)))
    try:
        await node.begin()
        where = node.substrate.raw.current_endpoint
        if problem := wrong_chain(network, node.genesis):
            error = ChainError if genesis() else ConfigError
            raise error(f"{where} is not the chain of --network {network}: {problem}")
        if genesis() not in ("", node.genesis):
            raise ChainError(f"{where} is another chain than before: its genesis is {node.genesis}, not {genesis()}")
    except BaseException:
        await node.substrate.close()
        raise
    return node


async def _hang_up(node: Node) -> None:
    await node.end()


def _classify(error: Exception) -> Trouble | None:
    """How an error of the SDK reads. The order matters: the first are kinds of the later ones."""
    if isinstance(error, RpcPolicyRejection | bt.RpcPolicyError):
        return Trouble.BUSY
    if isinstance(error, MaxRetriesExceeded | bt.RpcConnectionError | bt.ConnectionNotReady | OSError | EOFError):
        return Trouble.LOST
    if isinstance(error, SubstrateRequestException):
        return Trouble.REFUSED if error.payload is not None or isinstance(error, StateDiscardedError) else Trouble.LOST
    if isinstance(error, bt.BittensorError):
        return Trouble.REFUSED
    if isinstance(error, AssertionError | StopAsyncIteration):
        return Trouble.LOST  # the SDK's session ended under the question
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
        return Trouble.NONSENSE
    return None


# ------------------------------------------------------------------------------------------------ the adapter


class Chain:
    """One subnet of one chain. All methods run on the trio thread; all errors are ChainErrors or ConfigErrors."""

    def __init__(self, settings: hparams.Chain, network: str, netuid: int, bridge: Bridge, wallet: bt.Wallet | None) -> None:
        self.settings, self.network, self.netuid, self.wallet = settings, network, netuid, wallet
        self.genesis = ""
        """Genesis hash; empty before the first connection."""
        self.block_time = settings.block_time
        """Seconds per block, as the runtime says."""
        self.missing: tuple[str, ...] = ()
        """What the running runtime lacks; not empty holds weights and commits."""
        self.last_head: Head | None = None
        self._spec = 0
        self._seen = Sightings()
        self._reading = trio.Lock()
        self._unsettled: Sent | None = None
        endpoints, archives = endpoints_of(network, settings)
        self._link = Link(bridge, endpoints, dial=partial(_dial, network, archives, lambda: self.genesis), hang_up=_hang_up, classify=_classify,
                          call_deadline=settings.call_deadline, redial_first=settings.redial_first, redial_max=settings.redial_max)

    def __repr__(self) -> str:
        return f"<Chain {self.network} subnet {self.netuid} spec {self._spec} {self._link!r}>"

    # -- state of the connection -------------------------------------------------------------------------

    @property
    def is_dev(self) -> bool:
        """Whether this is a crusades dev chain, by its genesis. Known after the first call."""
        return self.genesis.startswith(DEV_GENESIS)

    @property
    def endpoint(self) -> str:
        """The endpoint that is tried first just now."""
        return self._link.endpoint

    @property
    def problem(self) -> str:
        """What is wrong right now, in words; empty when all is well."""
        if self._link.problem:
            return self._link.problem
        return f"the runtime (spec {self._spec}) lacks {', '.join(self.missing)}: weights are held" if self.missing else ""

    @property
    def hotkey(self) -> str:
        """SS58 of the wallet's hotkey. ConfigError without a wallet."""
        return str(self._signer().ss58_address)

    def _signer(self) -> Any:
        if self.wallet is None:
            raise ConfigError("this needs a wallet: give --wallet.name and --wallet.hotkey")
        return self.wallet.hotkey

    async def _call(self, ask: Callable[[Node], Awaitable[T]], *, deadline: float | None = None, once: bool = False) -> T:
        def noted(node: Node) -> Awaitable[T]:
            self.genesis, self.block_time = node.genesis, node.block_time
            return ask(node)

        return await self._link.call(noted, deadline=deadline, once=once)

    async def _at(self, block_hash: str | None, ask: Callable[[State], Awaitable[T]]) -> T:
        async def question(node: Node) -> T:
            return await ask(await node.state(block_hash))

        return await self._call(question)

    # -- reads -------------------------------------------------------------------------------------------

    async def check(self) -> ChainFacts:
        """Which chain this is and whether its runtime has all that we use. ConfigError when it is the wrong one."""
        head = await self.head()
        exists, = await self._at(head.best_hash, lambda state: state.read(("SubtensorModule", "NetworksAdded", self.netuid)))
        return ChainFacts(network=self.network, endpoint=self.endpoint, genesis=self.genesis, is_dev=self.is_dev, spec_version=self._spec,
                          netuid=self.netuid, subnet_exists=bool(exists), head=head, missing=self.missing)

    async def head(self) -> Head:
        """Best and finalised head, now. Notices a runtime upgrade."""
        async def ask(node: Node) -> tuple[Head, int, tuple[str, ...]]:
            return await node.head(), node.spec, node.lacking()

        head, spec, self.missing = await self._call(ask)
        self.last_head = head
        if spec != self._spec:
            log.info("runtime spec %s (was %s)%s", spec, self._spec or "unknown", f": it lacks {', '.join(self.missing)}" if self.missing else "")
            upgraded, self._spec = bool(self._spec), spec
            if upgraded:
                await self._link.renew()  # the SDK would sign for the old runtime for up to twelve seconds more
        return head

    async def heads(self) -> AsyncGenerator[Head, None]:
        """Every change of best or finalised head, from now on, for ever: outages are waited out inside (`problem` tells)."""
        last: Head | None = None
        while True:
            try:
                head = await self.head()
            except ChainError as error:
                log.warning("no head: %s", error)
                await trio.sleep(self.settings.redial_first)
                continue
            if head != last:
                last = head
                yield head
            await self._wait_block()

    async def _wait_block(self) -> None:
        """Until a block is announced, or it is time to look: a silent subscription costs one and a half blocks."""
        try:
            await self._link.call(Node.next_block, deadline=max(self.settings.poll_interval, 1.5 * self.block_time), once=True, quiet=True)
        except ChainError as error:
            log.debug("no announcement: %s", error)
            await trio.sleep(min(self.settings.poll_interval, self.block_time) / 4)

    async def neurons(self, block_hash: str | None = None) -> list[Neuron]:
        """All registered keys of the subnet, by uid, at a block (best head when None)."""
        return await self._at(block_hash, lambda state: self._neurons(state))

    async def _neurons(self, state: State) -> list[Neuron]:
        return read.neurons_of(await read.graph(state, self.netuid))

    async def owner(self, block_hash: str | None = None) -> Owner:
        """Who owns the subnet, and the uid that a burn share goes to."""
        return await self._at(block_hash, lambda state: read.owner(state, self.netuid))

    def learn(self, rows: Iterable[Commitment]) -> None:
        """Tell what the store knows, once after a start: pending seals, and the commit blocks of opened rows."""
        self._seen.learn(rows)

    async def commitments(self, block_hash: str | None = None, *, hotkey: str | None = None) -> list[Commitment]:
        """Every commitment (of one hotkey, when given) that the chain knows at a block (best head when None), in order of service.

        Sealed, opened, failed, and, from what earlier reads saw, overwritten and dropped ones: each is a row. Rows are
        provisional above the finalised head that `head` last reported.
        """
        async def ask(state: State) -> list[Commitment]:
            final = self.last_head is not None and state.number <= self.last_head.finalized
            states = await read.hotkey_states(state, self.netuid, hotkey)
            late = await read.look_up(state, self.netuid, states.values(), self._seen, final=final)
            states = read.filled(states.values(), self._seen, late, final=final)
            rows = [row for one in states.values() for row in rows_of(self.netuid, one, provisional=not final)]
            return order([*rows, *self._seen.gone(rows, states, block=state.number, final=final, hotkey=hotkey)])

        async with self._reading:
            return await self._at(block_hash, ask)

    # -- weights -----------------------------------------------------------------------------------------

    async def preflight_weights(self, weights: Mapping[str, float]) -> WeightsPlan:
        """What would be sent for {hotkey: share}, and every rule of the chain that refuses it, at the best head.

        Sends nothing, so it is the rehearsal too. ChainIncompatible while the runtime lacks something we use.
        """
        self._must_be_compatible()
        facts = await self._at(None, lambda state: read.weights_facts(state, self.netuid, self.hotkey))
        return plan_weights(weights, facts, version_key=self.settings.version_key)

    @staticmethod
    def window(plan: WeightsPlan) -> Window:
        """The blocks in which weights sent by this plan can be: journal it before `set_weights`."""
        return Window(plan.block + 1, plan.block + PLAN_AGE + ERA)

    async def set_weights(self, plan: WeightsPlan) -> WeightsOutcome:
        """Send a plan's weights, plainly or sealed as the subnet wants them, and find them in a block.

        Checks the rules once more at the head. Raises Unresolved when nobody can say whether they were included: the
        next call looks for them first and sends nothing while they still may appear.
        """
        await self._settle()
        now = await self.preflight_weights(plan.asked)
        if now.refused:
            raise Refused(f"the chain would refuse the weights: {'; '.join(now.refused)}")
        if now.block > plan.block + PLAN_AGE or now.by_uid != plan.by_uid:
            raise ChainError("the weights plan is stale: plan again")
        call, reveal_round = self._plain(now) if not now.commit_reveal else await self._sealed(now)
        try:
            found = await self._send(call, self._signer(), "weights")
        except Unresolved as error:
            self._unsettled = error.sent
            raise
        return WeightsOutcome(block=found.block, block_hash=found.block_hash, extrinsic=found.extrinsic, by_uid=now.by_uid,
                              sealed=now.commit_reveal, reveal_round=reveal_round)

    def _plain(self, plan: WeightsPlan) -> tuple[Any, None]:
        return bt.calls.SubtensorModule.set_mechanism_weights(
            netuid=self.netuid, mecid=0, dests=list(plan.uids), weights=list(plan.values), version_key=plan.version_key), None

    async def _sealed(self, plan: WeightsPlan) -> tuple[Any, int]:
        epoch, hotkey = plan.epoch, self._signer()
        commit, reveal_round = core.get_encrypted_commit_v2(
            uids=list(plan.uids), weights=list(plan.values), version_key=plan.version_key, last_epoch_block=epoch.last_epoch_block,
            pending_epoch_at=epoch.pending_epoch_at, subnet_epoch_index=epoch.index, tempo=epoch.tempo,
            blocks_since_last_step=epoch.blocks_since_last_step, current_block=plan.block, subnet_reveal_period_epochs=epoch.reveal_period,
            block_time=self.block_time, hotkey=bytes(hotkey.public_key))
        if self.is_dev:
            plaintext = dev_plaintext(bytes(hotkey.public_key), plan)
            await self._call(lambda node: node.rpc("crusades_oracle", "0x" + bytes(commit).hex(), "0x" + plaintext.hex()))
        return bt.calls.SubtensorModule.commit_timelocked_mechanism_weights(
            netuid=self.netuid, mecid=0, commit=bytes(commit), reveal_round=reveal_round, commit_reveal_version=COMMIT_REVEAL_VERSION), reveal_round

    async def read_weights(self, block_hash: str | None = None) -> OnChainWeights:
        """Our row of the weight matrix as the chain holds it (best head when None)."""
        return await self._at(block_hash, lambda state: read.own_weights(state, self.netuid, self.hotkey))

    # -- the miner's side --------------------------------------------------------------------------------

    async def commit_facts(self, hotkey: str) -> CommitFacts:
        """Whether this hotkey may commit now, and what that would destroy or use up."""
        return await self._at(None, lambda state: read.commit_facts(state, self.netuid, hotkey))

    async def commit(self, payload: bytes, wallet: bt.Wallet, reveal_blocks: int, *, signed: Callable[[Sent], None] | None = None) -> Committed:
        """Seal `payload` (with its length prefix) for about `reveal_blocks` from now and commit it. Signed by the hotkey.

        `signed` is told what was signed before it is sent, so that it can be written down.

        Raises Refused with the chain's reason, or Unresolved: read the chain before committing again.
        """
        self._must_be_compatible()
        if len(payload) > MAX_PLAINTEXT:
            raise ChainError(f"the payload has {len(payload)} bytes; {MAX_PLAINTEXT} fit into a sealed field")
        await self.head()
        reveal_round = DEV_ROUND if self.is_dev else round_at(time.time() + reveal_blocks * self.block_time)
        envelope, _ = core.encrypt_at_round(payload, reveal_round)
        field = {"TimelockEncrypted": {"encrypted": bytes(core.inner_ciphertext(envelope)), "reveal_round": reveal_round}}
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [[field]]})
        found = await self._send(call, wallet.hotkey, "the commitment", signed)
        return Committed(block=found.block, block_hash=found.block_hash, extrinsic=found.extrinsic, reveal_round=reveal_round,
                         reveal_block_estimate=found.block + reveal_blocks)

    async def pay_fee(self, wallet: bt.Wallet, *, signed: Callable[[Sent], None] | None = None) -> str:
        """Transfer the competition's fee from the wallet's coldkey; returns the receipt `<block>-<index>`."""
        if not self.settings.fee_rao or not self.settings.fee_address:
            raise ConfigError("no fee is asked: chain.fee_rao and chain.fee_address in hparams.toml are not set")
        self._must_be_compatible()
        call = bt.calls.Balances.transfer_keep_alive(dest={"Id": self.settings.fee_address}, value=self.settings.fee_rao)
        return (await self._send(call, wallet.coldkey, "the fee", signed)).extrinsic

    async def receipt(self, receipt: str) -> Receipt | None:
        """The transfer that a receipt `<block>-<index>` names; None when there is none. Pruned when the node forgot the block."""
        number, index = (int(part) for part in receipt.split("-"))

        async def ask(node: Node) -> Receipt | None:
            if number > int((await node.rpc("chain_getHeader"))["number"], 16):
                return None
            block_hash = await node.block_hash(number)
            return await read.receipt(await node.state(block_hash), block_hash, number, index)

        try:
            return await self._call(ask)
        except ChainError as error:
            if _is_pruned(str(error)):
                raise Pruned(str(error)) from error
            raise

    # -- sending -----------------------------------------------------------------------------------------

    def _must_be_compatible(self) -> None:
        if self.missing:
            raise ChainIncompatible(f"the chain's runtime (spec {self._spec}) lacks {', '.join(self.missing)}; nothing is sent. Update this program.")

    async def _send(self, call: Any, keypair: Any, what: str, signed: Callable[[Sent], None] | None = None) -> Included:
        """Sign, submit, and find it in a block."""
        async def sign(node: Node) -> tuple[str, Sent]:
            composed = await node.client.compose(call)  # type: ignore[no-untyped-call]  # the SDK leaves it so
            best = (await node.head()).best
            nonce = await node.substrate.raw.get_account_next_index(keypair.ss58_address, use_cache=False)
            data, digest = await node.substrate.sign_extrinsic(composed, keypair, nonce=nonce, period=ERA)
            return "0x" + data.hex(), Sent(hash=digest, what=what, first=best + 1, last=(await node.head()).finalized + ERA)

        sent: Sent | None = None
        with trio.move_on_after(self.settings.weights_deadline):
            data, on_its_way = await self._call(sign)
            if signed is not None:
                signed(on_its_way)
            sent = on_its_way
            try:
                patience = min(self.settings.call_deadline, max(2.0, self.block_time))
                await self._call(lambda node: node.submit(data), once=True, deadline=patience)
            except Refused as error:
                raise Refused(f"the chain refused {what}: {error}") from error
            except ChainError as error:
                log.warning("sent %s, unsure whether it arrived: %s", what, error)
            return await self._find(on_its_way)
        if sent is None:
            raise ChainError(f"{what} could not be signed within {self.settings.weights_deadline:g} s: nothing was sent ({self._link.problem})")
        raise Unresolved(f"{what} may have been sent, and nobody can say within {self.settings.weights_deadline:g} s whether it is on chain; it can be in "
                         f"blocks {sent.first} to {sent.last}: read the chain before sending again", sent)

    async def _find(self, sent: Sent) -> Included:
        """Look through the blocks until it is there, or can no longer come."""
        since = sent.first
        while True:
            try:
                found, head = await self._look(sent, since)
            except Failed:
                raise
            except ChainError as error:
                log.warning("looking for %s: %s", sent.what, error)
                await trio.sleep(self.settings.redial_first)
                continue
            if found is not None:
                return found
            if head.finalized >= sent.last:
                raise Expired(f"{sent.what} was in no block until block {sent.last} and can no longer come: it is safe to send again")
            since = max(sent.first, head.finalized + 1)
            await trio.sleep(min(1.0, self.block_time / 4))

    async def _look(self, sent: Sent, since: int) -> tuple[Included | None, Head]:
        async def ask(node: Node) -> tuple[Included | None, Head]:
            head = await node.head()
            for number in range(since, min(head.best, sent.last) + 1):
                if (found := await node.holds(sent, number)) is not None:
                    return found, head
            return None, head

        return await self._call(ask)

    async def resolve(self, sent: Sent) -> Included | None:
        """What became of an extrinsic: included, or None when it is not there and can no longer come.

        Raises Failed when it is there and failed, Unresolved while it may still come, Pruned when the node has forgotten.
        """
        found, head = await self._look(sent, sent.first)
        if found is None and head.finalized < sent.last:
            raise Unresolved(f"{sent.what} may still come, until block {sent.last}", sent)
        return found

    async def _settle(self) -> None:
        """Nothing new is sent while weights sent earlier may still come."""
        if self._unsettled is None:
            return
        try:
            found = await self.resolve(self._unsettled)
        except Failed as error:
            log.warning("the weights sent earlier failed: %s", error)
        except Pruned:
            if (await self.head()).finalized < self._unsettled.last:
                raise
            log.info("nobody knows what became of the weights sent earlier; they can no longer come")
        else:
            log.info("the weights sent earlier are %s", f"in block {found.block}" if found else "on no block")
        self._unsettled = None

    async def aclose(self) -> None:
        """Hang up."""
        await self._link.aclose()


def dev_plaintext(public_key: bytes, plan: WeightsPlan) -> bytes:
    """The SCALE plaintext inside sealed weights (hotkey, uids, values, version key), as the chain's own decoder reads it."""
    from crusades.payload import compact

    def vector(numbers: Sequence[int]) -> bytes:
        return compact(len(numbers)) + b"".join(n.to_bytes(2, "little") for n in numbers)

    return compact(len(public_key)) + public_key + vector(plan.uids) + vector(plan.values) + plan.version_key.to_bytes(8, "little")


@asynccontextmanager
async def open_chain(settings: hparams.Chain, network: str, netuid: int, bridge: Bridge, *, wallet: bt.Wallet | None = None) -> AsyncIterator[Chain]:
    """The adapter; it dials with the first call. `network`: finney, test, local, dev or a ws:// address. Only the wallet's
    hotkey is ever used, but for `pay_fee`."""
    chain = Chain(settings, network, netuid, bridge, wallet)
    try:
        yield chain
    finally:
        await chain.aclose()


# ------------------------------------------------------------------------------------------------ wallets


def open_wallet(name: str, hotkey: str, path: str, *, password: Callable[[str], str] | None = None, coldkey: bool = False) -> bt.Wallet:
    """The wallet with its hotkey unlocked (and its coldkey, if asked). ConfigError says what to do about any problem.

    `password(prompt)` is asked only for an encrypted key; without it the SDK's environment variables are looked at.
    """
    try:
        wallet = bt.Wallet(name, hotkey, path)
    except ValueError as error:
        raise ConfigError(f"bad wallet name: {error}") from error
    _unlock(wallet.hotkey_file, f"hotkey {wallet.hotkey_str!r} of wallet {wallet.name!r}", wallet.get_hotkey, password)
    if coldkey:
        _unlock(wallet.coldkey_file, f"coldkey of wallet {wallet.name!r}", wallet.get_coldkey, password)
    return wallet


def _unlock(file: Any, what: str, get: Callable[[str | None], Any], password: Callable[[str], str] | None) -> None:
    if not file.exists_on_device():
        raise ConfigError(f"there is no {what}: {file.path} does not exist. {_there_is(file.path)}Check --wallet.name, --wallet.hotkey and "
                          "--wallet.path, or make one with `btcli wallet create`.")
    secret: str | None = None
    try:
        if file.is_encrypted():
            secret = os.environ.get("BT_WALLET_PASSWORD") or core.get_password_from_environment(file.env_var_name())
            secret = secret or (password(f"Password of the {what}: ") if password else None)
            if not secret:
                raise ConfigError(f"the {what} is encrypted: run this in a terminal, or set BT_WALLET_PASSWORD")
        get(secret)
    except (core.KeyfileError, core.WrongPasswordError) as error:
        raise ConfigError(f"the {what} cannot be opened ({error}): {'wrong password?' if secret else f'is {file.path} damaged?'}") from error
    except OSError as error:
        raise ConfigError(f"the {what} cannot be read: {error.strerror or error}: check who owns {file.path}") from error
    except ValueError as error:
        raise ConfigError(f"the {what} is damaged ({error}): restore {file.path} from its mnemonic") from error


def _there_is(path: str) -> str:
    folder = os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(n for n in os.listdir(folder) if not n.endswith("pub.txt"))[:8] if folder else []
    return f"{folder} holds {', '.join(names)}. " if names else ""


def create_wallet(name: str, hotkey: str, path: str) -> bt.Wallet:
    """A new wallet with an unencrypted hotkey and coldkey: for the dev network, where nothing has any value."""
    wallet = bt.Wallet(name, hotkey, path)
    if not wallet.coldkey_file.exists_on_device():
        wallet.create_new_coldkey(use_password=False, suppress=True)
    if not wallet.hotkey_file.exists_on_device():
        wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet
