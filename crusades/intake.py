"""From a revealed commitment to a place in the queue: download, rules, copies.

Each step is a transition in the store, written when its work is done, so a restart repeats at most one download or scan.
What is wrong with a submission is a `Reason` and final; a host that cannot be asked is asked again, with doubled delays,
until its grace window ends.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import trio

from crusades import logs
from crusades.context import Context, retry_delay
from crusades.copies import Known, find_copies, find_original
from crusades.errors import ChainError, FetchFault, SandboxFault
from crusades.faults import fault
from crusades.fees import asks_fee, judge_receipt, out_of_window
from crusades.records import Finding, Payload, Reason, Source, Stage, Status, Submission

log = logging.getLogger("crusades.intake")

FETCHERS = 4
"""Downloads at a time: one slow host must not hold up the others."""
FIRST_RETRY, MOST_RETRY = 15.0, 900.0
"""Seconds between attempts at a host that cannot be asked: doubled from the first to the most."""
WAIT_FOR_EARLIER = 5.0
"""Seconds until one that waits for what becomes of an earlier one is looked at again."""
NOTE_EVERY, MOST_GAP = 1800.0, 2 * (1800.0 + MOST_RETRY)
"""Seconds between the failures that are written down, and between two of them at most when we have asked all the time."""

ASK_AGAIN = (1.0, 5.0, 30.0)
"""Seconds between attempts to check a file's rules when our own process for it fails."""
PATIENCE = 300.0
"""Seconds that one file may hold the checker: two children that are given up after two minutes, on a machine that crawls."""

T = TypeVar("T")
Fetch = Callable[[Payload, Any], Awaitable[Source | Reason]]
Scan = Callable[[bytes], list[Finding]]

# ------------------------------------------------------------------------------------------------ fetching


class Retries:
    """When a failed download may be tried again, on trio's clock; in memory only, because a restart may try at once."""

    def __init__(self) -> None:
        self._tries: dict[str, tuple[int, float]] = {}
        self.due_paid: set[str] = set()
        """Those that counted when their interval and their fee were looked at: what the next commitments of their hotkeys are held against."""
        self.told: set[str] = set()
        """Those whose miners have been told that they wait for an earlier one."""

    def due(self, id_: str, now: float) -> bool:
        """Whether it may be tried now."""
        return id_ not in self._tries or self._tries[id_][1] <= now

    def failed(self, id_: str, now: float) -> float:
        """Note a failure; the delay until the next attempt."""
        attempt = self._tries.get(id_, (0, 0.0))[0] + 1
        delay = retry_delay(attempt, FIRST_RETRY, MOST_RETRY)
        self._tries[id_] = (attempt, now + delay)
        return delay

    def postpone(self, id_: str, until: float) -> None:
        """Not its failure: it is looked at again then."""
        self._tries[id_] = (self._tries.get(id_, (0, 0.0))[0], until)

    def forget(self, id_: str) -> None:
        """It is over."""
        self._tries.pop(id_, None)

    def keep_only(self, ids: Iterable[str]) -> None:
        """What is not to be fetched any more, because it was judged early or withdrawn, is not waited for."""
        wanted = set(ids)
        for id_ in self._tries.keys() - wanted:
            del self._tries[id_]
        self.due_paid &= wanted
        self.told &= wanted

    def wait(self, now: float) -> float:
        """Seconds until the next one is due; a minute at most, to show that the fetcher lives."""
        return max(0.0, min([60.0, *(at - now for _, at in self._tries.values())]))


async def fetch_revealed(ctx: Context, fetch: Fetch, retries: Retries, name: str) -> None:
    """One of several fetchers: takes the first revealed submission that nobody has in hand, for ever."""
    ctx.health.expect(name, ctx.hparams.fetch.total_timeout + 120.0)
    while True:
        seen = ctx.bells.revealed.count
        ctx.health.progress(name, "looking")
        rows = await ctx.store.in_state(Status.REVEALED)
        retries.keep_only(row.id for row in rows)
        free = [row for row in rows if row.id not in ctx.fetching and retries.due(row.id, trio.current_time())]
        if not free:
            await ctx.bells.revealed.wait(seen, retries.wait(trio.current_time()) or 1.0)
            continue
        ctx.fetching.add(free[0].id)
        try:
            # Looked at again now that it is ours: another fetcher may have finished it while we read the list.
            fresh = await ctx.store.submission(free[0].id)
            if fresh is None or fresh.submission.status is not Status.REVEALED:
                continue
            with logs.bound(submission=free[0].id, hotkey=free[0].hotkey, stage="fetch", block=ctx.block):
                ctx.health.progress(name, f"fetching {free[0].id}")
                await _fetch_one(ctx, fetch, retries, fresh.submission)
        finally:
            ctx.fetching.discard(free[0].id)


async def _fetch_one(ctx: Context, fetch: Fetch, retries: Retries, row: Submission) -> None:
    payload = await ctx.store.payload(row.id) or Payload(sha256=row.sha256, url=row.url)
    if await undecided_before(ctx, retries, row):
        retries.postpone(row.id, trio.current_time() + WAIT_FOR_EARLIER)
        return
    try:
        early = await too_soon(ctx, row) or await unpaid(ctx, row, payload)
    except _Undecided as undecided:
        if row.id not in retries.told:  # once: the miner sees what it waits for
            retries.told.add(row.id)
            await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, note=str(undecided), was=Status.REVEALED)
        retries.failed(row.id, trio.current_time())
        return
    except ChainError as error:
        delay = retries.failed(row.id, trio.current_time())
        log.warning("its fee cannot be looked up, again in %.0f s: %s", delay, error)
        if row.reason is None:  # once: the miner sees what it waits for
            why = Reason(code=fault("chain-down").code, stage=Stage.CHAIN, message=f"Its fee cannot be looked up: {error}", hint=fault("chain-down").advice)
            await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, reason=why)
        return
    if early is not None and row.provisional:
        # What the best head says of fees and earlier commitments may be otherwise one fork later: judged once it is final.
        retries.postpone(row.id, trio.current_time() + ctx.chain.block_time)
        return
    if early is not None:
        await ctx.store.transition(row.id, Status.REJECTED, block=ctx.block, reason=early)
        ctx.bells.revealed.ring()  # later ones of its hotkey may have waited for it
        return
    retries.due_paid.add(row.id)
    try:
        got = await fetch(payload, ctx.rulebook.at(row.commit_block).hparams.fetch)
    except FetchFault as error:
        ctx.metrics.fetches.labels(result="unreachable").inc()
        await _host_down(ctx, retries, row, str(error))
        return
    retries.forget(row.id)
    if isinstance(got, Reason):
        ctx.metrics.fetches.labels(result="refused").inc()
        log.info("rejected: %s", got.message)
        await ctx.store.transition(row.id, Status.REJECTED, block=ctx.block, reason=got, was=Status.REVEALED)
        return
    ctx.metrics.fetches.labels(result="fetched").inc()
    if not await ctx.store.save_source(row.id, got, rules_version=ctx.rulebook.version_at(row.commit_block), asked=payload):
        retries.postpone(row.id, trio.current_time() + WAIT_FOR_EARLIER)  # started over: what it names now is fetched next
        return
    await ctx.store.transition(row.id, Status.FETCHED, block=ctx.block, note=f"{len(got.content)} bytes from {got.url}", was=Status.REVEALED)
    ctx.bells.fetched.ring()


async def _host_down(ctx: Context, retries: Retries, row: Submission, words: str) -> None:
    """The grace window counts while we ask: from a failure that is written down, so it survives a restart, but not past a time in
    which we were down ourselves, and not while we reach the chain no more either, when it is we who are cut off."""
    detail = await ctx.store.submission(row.id)
    at = [step.at for step in detail.transitions if step.reason is not None and step.reason.code == fault("host-down").code] if detail else []
    failures = asked_since(at, ctx.now())
    ctx.metrics.count_fault(fault("host-down").code)
    grace = ctx.hparams.fetch.grace_hours * 3600
    if ctx.chain.down:
        delay = retries.failed(row.id, trio.current_time())
        log.info("tried again in %.0f s, for we do not reach the chain either: %s", delay, words)
        return
    if failures and ctx.now() - failures[0] >= grace:
        retries.forget(row.id)
        final = Reason(code=fault("unreachable").code, stage=Stage.FETCH, hint=fault("unreachable").advice, limit=f"{ctx.hparams.fetch.grace_hours:g} h",
                       message=f"The host could not be asked for {ctx.hparams.fetch.grace_hours:g} h. The last answer: {words}")
        await ctx.store.transition(row.id, Status.REJECTED, block=ctx.block, reason=final)
        return
    delay = retries.failed(row.id, trio.current_time())
    log.info("tried again in %.0f s: %s", delay, words)
    if not failures or ctx.now() - failures[-1] >= NOTE_EVERY:  # the first starts the window and tells the miner
        why = Reason(code=fault("host-down").code, stage=Stage.FETCH, message=words, hint=fault("host-down").advice)
        await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, reason=why)


def asked_since(failures: Sequence[float], now: float) -> list[float]:
    """The last failures (seconds of the wall clock, in order) without a gap in which nobody can have asked."""
    found: list[float] = []
    for at in reversed(failures):
        if (found[0] if found else now) - at > MOST_GAP:
            break
        found.insert(0, at)
    return found


async def undecided_before(ctx: Context, retries: Retries, row: Submission) -> bool:
    """Whether an earlier commitment of the hotkey may still turn out not to count, for its interval or its fee: then nobody can say
    yet what this one is held against. Whoever was down meets several at once, and is to judge as one who was not."""
    dues = ctx.rulebook.dues_at(row.commit_block)
    if not dues.min_commit_interval and not asks_fee(dues):
        return False
    page = await ctx.store.submissions(hotkey=row.hotkey, limit=200)
    # Not for ever: a receipt that nobody can look up any more decides nothing.
    oldest = ctx.now() - ctx.hparams.fetch.grace_hours * 3600
    return any(other.status is Status.REVEALED and other.commit_block < row.commit_block and other.id not in retries.due_paid and other.updated_at > oldest
               for other in page.items)


async def too_soon(ctx: Context, row: Submission) -> Reason | None:
    """Whether another counted commitment of the hotkey lies too close before this one (`chain.min_commit_interval`)."""
    interval = ctx.rulebook.dues_at(row.commit_block).min_commit_interval
    if not interval:
        return None
    page = await ctx.store.submissions(hotkey=row.hotkey, limit=200)
    earlier = [other.commit_block for other in page.items if other.commit_block < row.commit_block and not _not_counted(other)]
    if not earlier or row.commit_block - max(earlier) >= interval:
        return None
    wrong = fault("too-soon")
    return Reason(code=wrong.code, stage=Stage.CHAIN, message=f"The hotkey's last counted commitment was in block {max(earlier)}; {interval} blocks must lie between two.",
                  measured=float(row.commit_block - max(earlier)), limit=float(interval), hint=wrong.advice)


async def unpaid(ctx: Context, row: Submission, payload: Payload) -> Reason | None:
    """Why the fee receipt that the payload names does not pay for it; None when it does, or no fee is asked. The receipt is
    then held for this submission. ChainError when the chain cannot be asked."""
    settings = ctx.rulebook.dues_at(row.commit_block)
    if not asks_fee(settings):
        return None
    found = await ctx.chain.receipt(payload.receipt) if payload.receipt and not out_of_window(payload.receipt, row.commit_block) else None
    payers = {row.hotkey}
    if found is not None and found.signer not in payers:
        # Asked of the chain and not of our board, which is empty after a start and some blocks old later: that is no miner's fault.
        payers.add(await ctx.chain.coldkey(row.hotkey))
    judge = partial(judge_receipt, payload.receipt, found, settings, payers=payers, commit_block=row.commit_block, submission_id=row.id)
    wrong = judge(used_by=None)
    if wrong is not None or payload.receipt is None:
        return wrong
    holder = await ctx.store.claim_receipt(row.id, payload.receipt)
    if holder not in (None, row.id):
        detail = await ctx.store.submission(holder)
        if detail is not None and not detail.submission.status.final:
            raise _Undecided(f"waits for what becomes of submission {holder}, which names the same receipt and may give it back")
    return judge(used_by=holder)


class _Undecided(Exception):
    """What an earlier submission comes to decides about this one."""


def _not_counted(row: Submission) -> bool:
    return row.status is Status.REJECTED and row.reason is not None and row.reason.stage is Stage.CHAIN


# ------------------------------------------------------------------------------------------------ checking


async def check_fetched(ctx: Context, scan: Scan) -> None:
    """Rules, then copies, then the queue; one at a time, in order of service, so that of two equal files the earlier wins."""
    ctx.health.expect("checker", PATIENCE)
    await _settle_last_verdicts(ctx)
    while True:
        seen = ctx.bells.fetched.count
        ctx.health.progress("checker", "looking")
        for row in await ctx.store.in_state(Status.FETCHED):
            # Looked at again: an earlier one of the list may have shown it to be a copy, or the chain may have rejected it.
            fresh = await ctx.store.submission(row.id)
            if fresh is None or fresh.submission.status is not Status.FETCHED:
                continue
            with logs.bound(submission=row.id, hotkey=row.hotkey, stage="check", block=ctx.block):
                await _check_one(ctx, scan, fresh.submission)
            ctx.health.progress("checker", f"checked {row.id}")
        for row in await ctx.store.in_state(Status.CHECKED):  # also those that a restart caught between the two
            await ctx.store.transition(row.id, Status.QUEUED, block=ctx.block)
            ctx.bells.queue.ring()
        await ctx.bells.fetched.wait(seen, 60.0)


async def _check_one(ctx: Context, scan: Scan, row: Submission) -> None:
    source = await ctx.store.source(row.id)
    if source is None:  # cannot be: FETCHED follows the source; if a person removed it, fetching it again is the cure
        await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, note="its source is missing from the store")
        ctx.bells.revealed.ring()
        return
    try:
        findings = await _ask_about(ctx, scan, source.content)
    except SandboxFault as error:
        wrong = fault("sandbox")
        reason = Reason(code=wrong.code, stage=Stage.CHECK, message=f"The rules could not be checked: {error}", hint=wrong.advice)
        await ctx.store.transition(row.id, Status.FAULTED, block=ctx.block, reason=reason, was=Status.FETCHED)
        return
    if findings:
        from crusades.rules import first_reason

        reason = first_reason(findings)
        log.info("rejected: %s", reason.message)
        await ctx.store.transition(row.id, Status.REJECTED, block=ctx.block, reason=reason, was=Status.FETCHED)
        return
    original = await settle_copies(ctx, row, source)
    if original is None:
        await ctx.store.transition(row.id, Status.CHECKED, block=ctx.block, was=Status.FETCHED)


async def _ask_about(ctx: Context, ask: Callable[[bytes], T], content: bytes) -> T:
    """What a child process says about a file (`rules_apart`). A child that cannot be run is our fault and says nothing about the
    file: asked again, for as long as no child can be run at all. Raises SandboxFault when others can and this file's cannot."""
    for attempt in itertools.count():
        try:
            # In a thread: half a megabyte takes a second. Abandoned at a shutdown: the child has limits of its own.
            answer = await trio.to_thread.run_sync(ask, content, abandon_on_cancel=True)
        except SandboxFault as error:
            log.error("asked again: %s", error)
            ctx.metrics.count_fault(fault("sandbox").code)
            ctx.problem("checker", str(error)[:300])
            if attempt >= len(ASK_AGAIN) and await _can_ask(ask):
                ctx.problem("checker")
                raise
        else:
            ctx.problem("checker")
            return answer
        ctx.health.progress("checker", "cannot check", deadline=PATIENCE)
        await trio.sleep(ASK_AGAIN[min(attempt, len(ASK_AGAIN) - 1)])
    raise AssertionError("counting ended")


async def _can_ask(ask: Callable[[bytes], object]) -> bool:
    """Whether a child can be run now; about a text that nobody has asked about, since answers are kept."""
    try:
        await trio.to_thread.run_sync(ask, f"x = {time.time_ns()}\n".encode(), abandon_on_cancel=True)
    except SandboxFault:
        return False
    return True


# ------------------------------------------------------------------------------------------------ copies


async def settle_copies(ctx: Context, row: Submission, source: Source) -> Known | None:
    """Reject `row` if it is a copy, and whatever is certainly a copy of it though it was revealed earlier. Returns the original."""
    print_ = await _ask_about(ctx, ctx.fingerprint, source.content)
    same = {other.id: other for other in await ctx.store.same_program(row.id, source.sha256, print_)}
    known = [Known(o.id, o.hotkey, o.commit_block, o.commit_block_exact) for o in same.values()]
    me = Known(row.id, row.hotkey, row.commit_block, row.commit_block_exact)
    known = [other for other in known if other.hotkey != me.hotkey or not await _registered_between(ctx, me, other)]
    original = find_original(me, known)
    if original is not None:
        await _reject_copy(ctx, row.id, original)
        return original
    for copy in find_copies(me, known):
        if same[copy.id].status in _TAKEN_BACK:  # one that is running is looked at again when it has been judged
            await _reject_copy(ctx, copy.id, me)
    return None


async def _registered_between(ctx: Context, one: Known, other: Known) -> bool:
    """Whether the hotkey was registered anew between two submissions of its own: what came before is paid no more, so what came
    after is not the copy of anything. Also True while nobody can say: then nobody is accused."""
    try:
        neurons = await ctx.chain.neurons()
    except ChainError:
        return True
    registered = next((neuron.registered_block for neuron in neurons if neuron.hotkey == one.hotkey), 0)
    return min(one.commit_block, other.commit_block) < registered <= max(one.commit_block, other.commit_block)


async def _settle_last_verdicts(ctx: Context) -> None:
    """After a start: a kill between a verdict and the look at its copies must not leave a copy its score. One verdict a slot
    can be in that place; a few more cost nothing."""
    for row in heapq.nlargest(8, await ctx.store.scored(), key=lambda row: row.updated_at):
        source = await ctx.store.source(row.id)
        if source is not None:
            with suppress(SandboxFault):  # the checker meets the same fault with the next file, and tells it
                await settle_copies(ctx, row, source)
        ctx.health.progress("checker", f"looked again at {row.id}")


_TAKEN_BACK = frozenset({Status.FETCHED, Status.CHECKED, Status.QUEUED, Status.SCORED})


async def _reject_copy(ctx: Context, id_: str, original: Known) -> None:
    wrong = fault("copy")
    reason = Reason(code=wrong.code, stage=Stage.CHECK, hint=wrong.advice, measured=original.id,
                    message=f"The same program was committed in block {original.commit_block} as submission {original.id}.")
    log.info("submission %s rejected: %s", id_, reason.message)
    await ctx.store.transition(id_, Status.REJECTED, block=ctx.block, reason=reason)
