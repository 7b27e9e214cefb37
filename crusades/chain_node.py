"""One connection to a node, through the public async client of the SDK, with the codecs of the node's runtimes.

Everything here runs on the asyncio thread. `chain_link` decides when one is dialled and when it is dropped; this module
says how, and how an error of the SDK reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import bittensor as bt
import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs
from bittensor import settings as sdk
from bittensor._transport.errors import (
    ExtrinsicNotFound,
    MaxRetriesExceeded,
    RpcPolicyRejection,
    StateDiscardedError,
    SubstrateRequestException,
)
from bittensor.result import chain_error_from_substrate_request

from crusades.chain_archive import Archives
from crusades.chain_link import Refused, Trouble
from crusades.chain_needs import missing
from crusades.chain_networks import wrong_chain
from crusades.chain_read import State, unhex
from crusades.chain_records import Failed, Head, Included, Pruned, Sent
from crusades.errors import ChainError, ConfigError, CrusadesError

T = TypeVar("T")

NOT_TAKEN = (-32601, -32602)
"""JSON-RPC codes that, beside the pool's own 1000 to 1999, prove that a submission was not taken: no such method, bad params."""


class Node:
    """One connection with the codecs of its runtimes. Everything here runs on the asyncio thread."""

    def __init__(self, substrate: bt.RpcSubstrate, archives: Archives[Node] | None = None) -> None:
        self.substrate, self._archives = substrate, archives
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
        # Two questions, two moments: what was final by the second was best at least. Else whoever looks for something in the
        # blocks up to `best`, and then goes on from `finalized`, skips those between and calls it lost.
        if int(final["number"], 16) > int(best["number"], 16):
            best_hash, best = final_hash, final
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
        """Decoded values at an older block, from an archive where this node has pruned it. Raises Pruned and NoArchive."""
        async def ask(node: Node) -> list[Any]:
            return list(await node.substrate.query_batch(pallet, item, keys, block_hash))

        return await self.or_archive(ask)

    async def or_archive(self, question: Callable[[Node], Awaitable[T]]) -> T:
        """What `question(node)` gives here, or at an archive when this node has forgotten. Raises Pruned and NoArchive."""
        try:
            return await _or_pruned(question, self)
        except Pruned:
            if self._archives is None:
                raise
        return await self._archives.ask(partial(_or_pruned, question), but=self.substrate.endpoint)

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
        if self._archives is not None:
            await self._archives.close()
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
            if not (1000 <= code < 2000 or code in NOT_TAKEN):
                raise ChainError(f"no clear answer: {error}") from error
            raise Refused(in_words(chain_error_from_substrate_request(error))) from error

    async def holds(self, sent: Sent, number: int) -> Included | None:
        """The extrinsic, if block `number` holds it. Failed when it is there and failed; ChainError when nobody can tell."""
        return await self.or_archive(lambda node: node._holds(sent, number))

    async def _holds(self, sent: Sent, number: int) -> Included | None:
        block_hash = await self.block_hash(number)
        answer = await self.rpc("chain_getBlock", block_hash)
        if answer is None:
            raise Pruned(f"the node no longer has block {number}")
        if sent.hash not in ("0x" + blake2b(unhex(raw), digest_size=32).hexdigest() for raw in answer["block"]["extrinsics"]):
            return None
        try:
            report = await self.substrate.raw.resolve_extrinsic(sent.hash, block_hash)
        except ExtrinsicNotFound as error:
            raise ChainError(f"no clear answer: {sent.what} is in block {number}, and the node now says that it is not") from error
        if report.is_success:
            return Included(block=number, block_hash=block_hash, extrinsic=f"{number}-{report.extrinsic_idx}")
        if report.error_message is None:  # no event says that it failed: that is no failure, and sending again would be wrong
            raise ChainError(f"no clear answer: {sent.what} is in block {number}, and the node does not show what became of it")
        raise Failed(f"the chain refused {sent.what} in block {number}: {_failure(report.error_message)}")


async def _or_pruned(question: Callable[[Node], Awaitable[T]], node: Node) -> T:
    """The answer; whatever the SDK calls forgotten state is Pruned."""
    try:
        return await question(node)
    except (bt.ChainError, SubstrateRequestException) as error:
        if is_pruned(str(error)):
            raise Pruned(str(error)) from error
        raise


def is_pruned(text: str) -> bool:
    lowered = text.lower()
    return "discarded" in lowered or "unknownblock" in lowered or "unknown block" in lowered or "header was not found" in lowered


def in_words(error: bt.ChainError) -> str:
    words = [f"{error.name}:" if error.name else "", error.message.strip(), error.remediation or ""]
    return " ".join(word for word in words if word)


def _failure(details: Any) -> str:
    """Why an extrinsic failed, of the SDK's report."""
    name, docs = (details.get("name"), details.get("docs")) if isinstance(details, dict) else (None, str(details))
    text = " ".join(docs) if isinstance(docs, list) else str(docs or name or details)
    return in_words(bt.ChainError(text, name))


async def dial(network: str, archives: Archives[Node] | None, genesis: Callable[[], str], endpoint: str) -> Node:
    """A connection to one endpoint, of the chain that we are on. The SDK gets no other endpoint to move on to by itself: each
    is checked here before it is believed."""
    node = Node(bt.RpcSubstrate(endpoint), archives)
    try:
        await node.begin()
        if problem := wrong_chain(network, node.genesis):
            error = ChainError if genesis() else ConfigError
            raise error(f"{endpoint} is not the chain of --network {network}: {problem}")
        if genesis() not in ("", node.genesis):
            raise ChainError(f"{endpoint} is another chain than before: its genesis is {node.genesis}, not {genesis()}")
    except BaseException:
        await node.substrate.close()
        raise
    return node


async def hang_up(node: Node) -> None:
    await node.end()


def classify(error: Exception) -> Trouble | None:
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


def is_trouble(error: Exception) -> bool:
    """Whether an endpoint is to blame, and not a bug of ours."""
    return isinstance(error, CrusadesError) or classify(error) is not None
