"""The chain: the adapter's face. The SDK (pinned exactly) is imported in the `chain*` modules alone, used through its public
async client on the bridge.

What is ours here and what is the SDK's. The SDK connects, signs, seals and submits. We read storage ourselves, raw and at
one block hash per question, because the SDK's readers cut a byte off unprefixed payloads and cannot tell text from bytes
(one odd row must never hide another), and because a vector checked at one block and built at another is a race.

- Connection: `chain_link` owns it, `chain_node` is one; every call has a deadline; reads are asked again after a redial,
  writes never.
- Writes: `chain_send` hands each over once and then looks for it in blocks; when nobody can say what became of it,
  `Unresolved` tells what to `resolve` before anything is sent again.
- What is read: `chain_read` asks one block's storage, `chain_rows` and `chain_weights` decide what it means (pure).
- Runtime upgrades: every storage item, call and runtime API that we use is checked against the metadata of the running
  runtime, at the start and whenever its spec version changes. What is missing is listed; weights and commits are then
  refused with ChainIncompatible, reads that still can go on.

Dev-only, on the dev genesis and nowhere else (nobody can know future drand signatures offline): commits are sealed to the
past round 1000, and the plaintext of sealed weights is told to the node (`crusades_oracle`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import bittensor as bt
import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs
import trio

from crusades import chain_read as read
from crusades import hparams
from crusades.chain_archive import Archives
from crusades.chain_link import Bridge, Link, Refused
from crusades.chain_networks import DEV_GENESIS, endpoints_of, wrong_chain
from crusades.chain_node import Node, classify, dial, hang_up, is_trouble
from crusades.chain_read import State
from crusades.chain_records import ChainFacts, CommitFacts, Committed, Failed, Head, Included, Owner, Pruned, Receipt, Sent, Unresolved
from crusades.chain_rows import Sightings, order, rows_of
from crusades.chain_send import Sender, Signed
from crusades.chain_wallets import create_wallet, open_wallet
from crusades.chain_weights import (
    COMMIT_REVEAL_VERSION,
    OnChainWeights,
    WeightsAround,
    WeightsOutcome,
    WeightsPlan,
    dev_plaintext,
    plan_weights,
)
from crusades.errors import ChainError, ChainIncompatible, ConfigError
from crusades.payload import MAX_PLAINTEXT, round_at
from crusades.records import Commitment, Neuron

__all__ = ["DEV_GENESIS", "Chain", "Unresolved", "create_wallet", "endpoints_of", "open_chain", "open_wallet", "wrong_chain"]

log = logging.getLogger("crusades.chain")
T = TypeVar("T")

DEV_ROUND = 1000
"""Past drand round that commits on the dev chain are sealed to: its signature is public, so devnet can open it offline."""
NOBODY = str(core.ss58_encode(bytes(32), 42))
"""The account of zeros, which the chain shows as the owner of a hotkey that it does not know."""
PLAN_AGE = 4
"""Blocks after which a weights plan is stale and must be made anew."""


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
        self._spec = 0
        self._seen = Sightings()
        self._reading = trio.Lock()
        self._unsettled: Sent | None = None
        endpoints, archives = endpoints_of(network, settings)
        known = Archives(archives, dial=partial(dial, network, None, lambda: self.genesis), hang_up=hang_up, is_trouble=is_trouble,
                         patience=settings.call_deadline / 2, rest=settings.redial_max)
        self._link = Link(bridge, endpoints, dial=partial(dial, network, known, lambda: self.genesis), hang_up=hang_up, classify=classify,
                          call_deadline=settings.call_deadline, redial_first=settings.redial_first, redial_max=settings.redial_max)
        self._sender = Sender(self)

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
    def down(self) -> str:
        """Why no node can be asked right now; empty while one answers."""
        return self._link.problem

    @property
    def problem(self) -> str:
        """What is wrong right now, in words; empty when all is well."""
        if self.down:
            return self.down
        return f"the runtime (spec {self._spec}) lacks {', '.join(self.missing)}: weights are held" if self.missing else ""

    @property
    def hotkey(self) -> str:
        """SS58 of the wallet's hotkey. ConfigError without a wallet."""
        return str(self._signer().ss58_address)

    def _signer(self) -> Any:
        if self.wallet is None:
            raise ConfigError("this needs a wallet: give --wallet.name and --wallet.hotkey")
        return self.wallet.hotkey

    async def call(self, ask: Callable[[Node], Awaitable[T]], *, deadline: float | None = None, once: bool = False) -> T:
        def noted(node: Node) -> Awaitable[T]:
            self.genesis, self.block_time = node.genesis, node.block_time
            return ask(node)

        return await self._link.call(noted, deadline=deadline, once=once)

    async def _at(self, block_hash: str | None, ask: Callable[[State], Awaitable[T]]) -> T:
        async def question(node: Node) -> T:
            return await ask(await node.state(block_hash))

        return await self.call(question)

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

        head, spec, self.missing = await self.call(ask)
        if spec != self._spec:
            log.info("runtime spec %s (was %s)%s", spec, self._spec or "unknown", f": it lacks {', '.join(self.missing)}" if self.missing else "")
            upgraded, self._spec = bool(self._spec), spec
            if upgraded:
                await self._link.renew()  # the SDK would sign for the old runtime for up to twelve seconds more
        return head

    async def heads(self) -> AsyncGenerator[Head, None]:
        """Best and finalised head whenever a block is announced or it is time to look, the same again while the chain stands
        still: whoever listens shows by that that it is no hang. For ever: outages are waited out inside (`problem` tells)."""
        while True:
            try:
                head = await self.head()
            except ChainError as error:
                log.warning("no head: %s", error)
                await trio.sleep(self.settings.redial_first)
                continue
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

    async def commitments(self, block_hash: str | None = None, *, final: bool = False, hotkey: str | None = None) -> list[Commitment]:
        """Every commitment (of one hotkey, when given) that the chain knows at a block (best head when None), in order of service.

        Sealed, opened, failed, and, from what earlier reads saw, overwritten and dropped ones: each is a row, and provisional
        unless the caller knows that the block is `final`: a height alone says nothing about this block of that height.
        """
        async def ask(state: State) -> list[Commitment]:
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

    async def set_weights(self, plan: WeightsPlan, *, signed: Signed | None = None) -> WeightsOutcome:
        """Send a plan's weights, plainly or sealed as the subnet wants them, and find them in a block.

        `signed` is told what was signed, and so in which blocks it can be, before it is sent: journal it there. Checks the
        rules once more at the head. Raises Unresolved when nobody can say whether they were included: the next call looks
        for them first and sends nothing while they still may appear.
        """
        await self._settle()
        now = await self.preflight_weights(plan.asked)
        if now.refused:
            raise Refused(f"the chain would refuse the weights: {'; '.join(now.refused)}")
        if now.block > plan.block + PLAN_AGE or now.by_uid != plan.by_uid:
            raise ChainError("the weights plan is stale: plan again")
        call, reveal_round = self._plain(now) if not now.commit_reveal else await self._sealed(now)
        try:
            found = await self._sender.send(call, self._signer(), "weights", signed)
        except Unresolved as error:
            self._unsettled = error.sent
            raise
        return WeightsOutcome(block=found.block, block_hash=found.block_hash, extrinsic=found.extrinsic, by_uid=now.by_uid,
                              sealed=now.commit_reveal, reveal_round=reveal_round)

    def _plain(self, plan: WeightsPlan) -> tuple[Any, None]:
        return bt.calls.SubtensorModule.set_mechanism_weights(
            netuid=self.netuid, mecid=0, dests=list(plan.uids), weights=list(plan.values), version_key=plan.version_key), None

    async def rehearse(self, plan: WeightsPlan) -> None:
        """Everything that sending the plan's weights takes, sealing included, but the sending. ChainError when it would fail."""
        call, _ = self._plain(plan) if not plan.commit_reveal else self._seal(plan)
        await self.call(lambda node: node.client.compose(call))  # type: ignore[no-untyped-call]  # the SDK leaves it so

    async def _sealed(self, plan: WeightsPlan) -> tuple[Any, int]:
        call, reveal_round = self._seal(plan)
        if self.is_dev:
            commit, plaintext = bytes(call.params["commit"]), dev_plaintext(bytes(self._signer().public_key), plan)
            await self.call(lambda node: node.rpc("crusades_oracle", "0x" + commit.hex(), "0x" + plaintext.hex()))
        return call, reveal_round

    def _seal(self, plan: WeightsPlan) -> tuple[Any, int]:
        epoch, hotkey = plan.epoch, self._signer()
        commit, reveal_round = core.get_encrypted_commit_v2(
            uids=list(plan.uids), weights=list(plan.values), version_key=plan.version_key, last_epoch_block=epoch.last_epoch_block,
            pending_epoch_at=epoch.pending_epoch_at, subnet_epoch_index=epoch.index, tempo=epoch.tempo,
            blocks_since_last_step=epoch.blocks_since_last_step, current_block=plan.block, subnet_reveal_period_epochs=epoch.reveal_period,
            block_time=self.block_time, hotkey=bytes(hotkey.public_key))
        return bt.calls.SubtensorModule.commit_timelocked_mechanism_weights(
            netuid=self.netuid, mecid=0, commit=bytes(commit), reveal_round=reveal_round, commit_reveal_version=COMMIT_REVEAL_VERSION), reveal_round

    async def read_weights(self, block_hash: str | None = None) -> OnChainWeights:
        """Our row of the weight matrix as the chain holds it (best head when None)."""
        return await self._at(block_hash, lambda state: read.own_weights(state, self.netuid, self.hotkey))

    async def weights_around(self, found: Included) -> WeightsAround:
        """What there was of our weights before `found` and with it. By hashes, so that a node on another branch gives no answer
        rather than a wrong one. Raises Pruned and NoArchive."""
        key = bytes(self._signer().public_key)

        async def ask(node: Node) -> WeightsAround:
            header = await node.rpc("chain_getHeader", found.block_hash)
            if header is None:
                raise ChainError(f"the node does not have block {found.block} ({found.block_hash})")
            before = await read.last_update(await node.state(header["parentHash"]), self.netuid, self.hotkey)
            return WeightsAround(before=before, together=await read.weights_sent(await node.state(found.block_hash), self.netuid, self.hotkey, key))

        return await self.call(lambda node: node.or_archive(ask))

    async def opened_weights(self, block: int) -> bool:
        """Whether the chain itself opened sealed weights of ours in this block of the best chain, and nobody signed any in it.
        That moves LastUpdate where commit-reveal was switched off meanwhile. Raises Pruned and NoArchive."""
        key = bytes(self._signer().public_key)

        async def ask(node: Node) -> bool:
            state = await node.state(await node.block_hash(block))
            return await read.opened_weights(state, self.netuid, self.hotkey) and not await read.weights_sent(state, self.netuid, self.hotkey, key)

        return await self.call(lambda node: node.or_archive(ask))

    # -- the miner's side --------------------------------------------------------------------------------

    async def commit_facts(self, hotkey: str) -> CommitFacts:
        """Whether this hotkey may commit now, and what that would destroy or use up."""
        return await self._at(None, lambda state: read.commit_facts(state, self.netuid, hotkey))

    async def coldkey(self, hotkey: str) -> str:
        """Who owns this hotkey, at the best head. ChainError when the chain does not know it (yet)."""
        found, = await self._at(None, lambda state: state.read((read.SUBTENSOR, "Owner", hotkey)))
        if found is None or str(found) == NOBODY:
            raise ChainError(f"the chain knows no coldkey of the hotkey {hotkey}")
        return str(found)

    async def opens_after(self, blocks: int) -> int:
        """Blocks until a commitment sealed for `blocks` from now is opened: on a dev chain as many as the node says."""
        await self.head()  # so that the genesis is known

        async def ask(node: Node) -> int:  # all of it within the call: an answer that makes no sense is the node's
            return int((await node.rpc("crusades_info"))["reveal_blocks"])

        return await self.call(ask) if self.is_dev else blocks

    async def commit(self, payload: bytes, wallet: bt.Wallet, reveal_blocks: int, *, signed: Signed | None = None) -> Committed:
        """Seal `payload` (with its length prefix) for about `reveal_blocks` from now and commit it. Signed by the hotkey.

        `signed` is told what was signed before it is sent, so that it can be written down.

        Raises Refused with the chain's reason, or Unresolved: read the chain before committing again.
        """
        self._must_be_compatible()
        if len(payload) > MAX_PLAINTEXT:
            raise ChainError(f"the payload has {len(payload)} bytes; {MAX_PLAINTEXT} fit into a sealed field")
        opens = await self.opens_after(reveal_blocks)
        reveal_round = DEV_ROUND if self.is_dev else round_at(time.time() + reveal_blocks * self.block_time)
        envelope, _ = core.encrypt_at_round(payload, reveal_round)
        field = {"TimelockEncrypted": {"encrypted": bytes(core.inner_ciphertext(envelope)), "reveal_round": reveal_round}}
        call = bt.calls.Commitments.set_commitment(netuid=self.netuid, info={"fields": [[field]]})
        found = await self._sender.send(call, wallet.hotkey, "the commitment", signed)
        return Committed(block=found.block, block_hash=found.block_hash, extrinsic=found.extrinsic, reveal_round=reveal_round,
                         reveal_block_estimate=found.block + opens)

    async def pay_fee(self, wallet: bt.Wallet, *, signed: Signed | None = None) -> str:
        """Transfer the competition's fee from the wallet's coldkey; returns the receipt `<block>-<index>`."""
        if not self.settings.fee_rao or not self.settings.fee_address:
            raise ConfigError("no fee is asked: chain.fee_rao and chain.fee_address in hparams.toml are not set")
        self._must_be_compatible()
        call = bt.calls.Balances.transfer_keep_alive(dest={"Id": self.settings.fee_address}, value=self.settings.fee_rao)
        # Final before it is named: a reorganisation would give it another number, and the payload cannot be changed any more.
        return (await self._sender.send(call, wallet.coldkey, "the fee", signed, final=True)).extrinsic

    async def receipt(self, receipt: str) -> Receipt | None:
        """The transfer that a receipt `<block>-<index>` names; None when there is none. Pruned when every endpoint forgot the
        block, NoArchive while one that may know it cannot be asked, ChainError while the node has not reached it."""
        number, index = (int(part) for part in receipt.split("-"))

        async def show(node: Node) -> Receipt | None:
            block_hash = await node.block_hash(number)
            return await read.receipt(await node.state(block_hash), block_hash, number, index)

        async def ask(node: Node) -> Receipt | None:
            # No "there is none": this node may be behind the one that showed the block, or the commitment that names it.
            if number > (best := (await node.head()).best):
                raise ChainError(f"the node has not reached block {number} of the receipt {receipt}: it is at block {best}")
            return await node.or_archive(show)

        return await self.call(ask)

    # -- what was sent -----------------------------------------------------------------------------------

    async def resolve(self, sent: Sent, *, final: bool = False) -> Included | None:
        """What became of an extrinsic that was sent earlier; see `Sender.resolve`."""
        if (await self.head()).best < sent.first - 1 and self.is_dev:
            return None  # a dev chain that was started anew has the same genesis, and is shorter
        return await self._sender.resolve(sent, final=final)

    def _must_be_compatible(self) -> None:
        if self.missing:
            raise ChainIncompatible(f"the chain's runtime (spec {self._spec}) lacks {', '.join(self.missing)}; nothing is sent. Update this program.")

    async def _settle(self) -> None:
        """Nothing new is sent while weights sent earlier may still come."""
        if self._unsettled is None:
            return
        try:
            found = await self._sender.resolve(self._unsettled)
        except Failed as error:
            log.warning("the weights sent earlier failed: %s", error)
        except Pruned:
            log.info("nobody knows what became of the weights sent earlier; they can no longer come")
        else:
            log.info("the weights sent earlier are %s", f"in block {found.block}" if found else "on no block")
        self._unsettled = None

    async def aclose(self) -> None:
        """Hang up."""
        await self._link.aclose()


@asynccontextmanager
async def open_chain(settings: hparams.Chain, network: str, netuid: int, bridge: Bridge, *, wallet: bt.Wallet | None = None) -> AsyncIterator[Chain]:
    """The adapter; it dials with the first call. `network`: finney, test, local, dev or a ws:// address. Only the wallet's
    hotkey is ever used, but for `pay_fee`."""
    chain = Chain(settings, network, netuid, bridge, wallet)
    try:
        yield chain
    finally:
        await chain.aclose()
