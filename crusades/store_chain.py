"""What a read of the chain changes: sightings merged into rows, confirmed or withdrawn at finality.

A read is a list of commitments. A row that is not `provisional` was seen in finalised state and is confirmed; the others
are sightings at the best head. A stored row that is still provisional although the chain is final past its blocks, and
that the read does not show, was on a branch that lost: it is withdrawn. Recording the same read again changes nothing.

Which stored row a sighting belongs to: the same hotkey and commit block, else the same reveal block where one of the two
does not know its commit block, else, for such a reveal, the newest seal that is older than it (a hotkey has one live
commitment, and a newer one replaces it, so it was the newest that was opened).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crusades.errors import StoreError
from crusades.faults import fault
from crusades.records import Commitment, Reason, Record, Stage, Status, next_name
from crusades.store_life import CHAINS_OWN, COPY, WITHDRAWN, Hand, chain_may_reject
from crusades.store_tx import Row, Tx, decode_payload, encode, fetch_rows

log = logging.getLogger(__name__)



class Recorded(Record, frozen=True, kw_only=True):
    """What `record_commitments` changed: submission ids."""

    new: tuple[str, ...] = ()
    revealed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    """By the chain's own reasons, malformed and foreign payloads among them."""
    confirmed: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()


@dataclass
class _Changes:
    new: list[str] = field(default_factory=list)
    revealed: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)


class Seen:
    """The last recorded read of each hotkey: what has not changed since need not be compared with the database."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Commitment, ...]] = {}

    def changed(self, rows: Iterable[Commitment]) -> dict[str, tuple[Commitment, ...]]:
        """The rows of every hotkey that shows something else than last time."""
        by_hotkey: dict[str, list[Commitment]] = {}
        for row in rows:
            by_hotkey.setdefault(row.hotkey, []).append(row)
        return {hotkey: tuple(rows) for hotkey, rows in by_hotkey.items() if self._rows.get(hotkey) != tuple(rows)}

    def remember(self, changed: dict[str, tuple[Commitment, ...]]) -> None:
        """After the commit."""
        self._rows.update(changed)

    def forget(self, hotkeys: Iterable[str]) -> None:
        """Rows of these were changed by something else than their own sighting."""
        for hotkey in hotkeys:
            self._rows.pop(hotkey, None)


async def record(tx: Tx, rows: Sequence[Commitment], changed: dict[str, tuple[Commitment, ...]], seen: Seen, *,
                 head: int, finalized: int, cursor: int | None) -> Recorded:
    """One transaction: merge, confirm, withdraw, advance the cursor."""
    horizon = min(head, finalized)
    changes = _Changes()
    stored = await _stored(tx, changed)
    for hotkey, sightings in changed.items():
        known = [row for row in stored if row.hotkey == hotkey]
        for sighting in sightings:
            await _merge(tx, sighting, known, changes, head=head)
    await _withdraw(tx, rows, changes, seen, horizon=horizon, head=head)
    if cursor is None or horizon > cursor:
        await tx.set_fact("cursor", horizon)
    return Recorded(**{name: tuple(dict.fromkeys(ids)) for name, ids in vars(changes).items()})


async def _stored(tx: Tx, changed: dict[str, tuple[Commitment, ...]]) -> list[Row]:
    if not changed:
        return []
    first = min(row.commit_block for rows in changed.values() for row in rows)
    # Seals wait long before a reveal whose commit block nobody knows; everything else is matched by its own blocks.
    return await fetch_rows(tx.db, "hotkey IN (SELECT value FROM json_each(?)) AND (commit_block >= ? OR reveal_block >= ? OR status = 'sealed') "
                                   "ORDER BY commit_block, n", (encode(list(changed)), first, first))


async def _merge(tx: Tx, seen: Commitment, known: list[Row], changes: _Changes, *, head: int) -> None:
    row = match(seen, known)
    if row is None:
        known.append(await _insert(tx, seen, changes, head=head))
        return
    known.remove(row)
    if _other_content(seen, row):
        if not row.provisional:
            log.error("submission %s is final, yet the chain now shows other content for it; ignored", row.id)
            known.append(row)
            return
        await _start_over(tx, row, seen, changes, head=head)
    else:
        await _advance(tx, row, seen, changes, head=head)
    row = await tx.row(row.id)
    await _settle(tx, row, seen, changes)
    known.append(await tx.row(row.id))


def match(seen: Commitment, known: Iterable[Row]) -> Row | None:
    """The stored row that a sighting is of; None when it is new."""
    known = list(known)
    exact = seen.commit_block_exact
    for row in known:
        if row.commit_block == seen.commit_block and bool(row.commit_block_exact) == exact:
            return row
    if seen.reveal_block is None:
        return None
    for row in known:
        if row.reveal_block == seen.reveal_block and not (exact and row.commit_block_exact):
            return row
    if exact:
        return None
    seals = [row for row in known if row.status == Status.SEALED and row.commit_block < seen.reveal_block]
    return max(seals, key=lambda row: (row.commit_block, row.n), default=None)


def _other_content(seen: Commitment, row: Row) -> bool:
    return bool(seen.raw and row.raw and seen.raw != row.raw)


async def _insert(tx: Tx, seen: Commitment, changes: _Changes, *, head: int) -> Row:
    id_ = seen.submission_id
    while await tx.all("SELECT 1 FROM submissions WHERE id = ?", id_):
        id_ = next_name(id_)
    if seen.state not in (Status.SEALED, Status.REVEALED, Status.REJECTED) or (seen.state is Status.REJECTED) != (seen.reason is not None):
        raise StoreError(f"a commitment is read as {seen.state} {'without' if seen.reason is None else 'with'} a reason")
    rejected = seen.state is Status.REJECTED
    columns = {
        "id": id_, "netuid": seen.netuid, "hotkey": seen.hotkey, "uid": seen.uid, "status": seen.state.value, "verdict": "rejected" if rejected else None,
        "commit_block": seen.commit_block, "commit_block_exact": seen.commit_block_exact, "reveal_block": seen.reveal_block,
        "reveal_round": _round(seen), "provisional": seen.provisional, "reason": seen.reason and encode(seen.reason),
        "created_at": tx.at, "updated_at": tx.at, **_content(seen)}
    await tx.all(f"INSERT INTO submissions ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", *columns.values())
    await tx.note(id_, seen.state, block=head, reason=seen.reason)
    tx.touch(id_)
    changes.new.append(id_)
    if seen.state is not Status.SEALED:
        (changes.rejected if rejected else changes.revealed).append(id_)
    if not seen.provisional:
        changes.confirmed.append(id_)
    return await tx.row(id_)


def _content(seen: Commitment) -> dict[str, str | None]:
    if seen.payload is None:
        return {"raw": seen.raw, "payload": None, "url": "", "sha256": ""}
    return {"raw": seen.raw, "payload": encode(seen.payload), "url": seen.payload.url, "sha256": seen.payload.sha256}


async def _advance(tx: Tx, row: Row, seen: Commitment, changes: _Changes, *, head: int) -> None:
    """Move a row to what the sighting says, where that is news."""
    status = Status(row.status)
    revivable = status is Status.REJECTED and (row.withdrawn or (bool(row.provisional) and row.reason_code in CHAINS_OWN))
    if seen.state is Status.REJECTED:
        # At the best head a chain reason may be gone one fork later; it counts once it is final.
        news = seen.reason is not None and row.reason != encode(seen.reason)
        if news and (revivable or (chain_may_reject(status) and not seen.provisional)):
            columns = {"reveal_block": seen.reveal_block or row.reveal_block, **(_content(seen) if seen.raw else {})}
            await tx.move(row, Status.REJECTED, block=head, reason=seen.reason, hand=Hand.CHAIN, columns=columns)
            await tx.all("DELETE FROM receipts WHERE submission = ? AND NOT spent", row.id)  # it never ran: its fee serves the next one
            withdrawn = seen.reason is not None and seen.reason.code == WITHDRAWN
            (changes.withdrawn if withdrawn else changes.rejected).append(row.id)
    elif seen.state is Status.REVEALED and (status is Status.SEALED or revivable):
        await tx.move(row, Status.REVEALED, block=head, hand=Hand.CHAIN,
                      columns={"reveal_block": seen.reveal_block, "provisional": seen.provisional, "score_mfu": None, **_content(seen)})
        changes.revealed.append(row.id)
    elif seen.state is Status.SEALED and revivable and not row.raw:
        await tx.move(row, Status.SEALED, block=head, hand=Hand.CHAIN)


async def _start_over(tx: Tx, row: Row, seen: Commitment, changes: _Changes, *, head: int) -> None:
    """Another branch won, with other content in the same blocks: nothing that was found out about the old content holds."""
    for table in ("sources", "runs", "verdicts", "receipts"):
        await tx.all(f"DELETE FROM {table} WHERE submission = ?", row.id)
    status = Status.REJECTED if seen.state is Status.REJECTED else Status.REVEALED
    columns = {"reveal_block": seen.reveal_block, "provisional": seen.provisional, "fingerprint": "", "score_mfu": None, "attempts": 0, "evaluation": 0,
               "slot": "", "faults": 0, "rules_version": "", "device": "", **_content(seen)}
    await tx.move(row, status, block=head, reason=seen.reason, hand=Hand.CHAIN, columns=columns, note="another branch of the chain won, with other content")
    (changes.rejected if seen.reason else changes.revealed).append(row.id)


LAST_ROUND = 2**53 - 1
"""The chain takes any 64 bits for a round, SQLite and JavaScript do not; this one is as far away as those above it."""


def _round(seen: Commitment) -> int | None:
    return None if seen.reveal_round is None else min(seen.reveal_round, LAST_ROUND)


async def _settle(tx: Tx, row: Row, seen: Commitment, changes: _Changes) -> None:
    """What a sighting says beside the state: blocks, uid, and whether it is final."""
    news: dict[str, object] = {}
    if seen.commit_block_exact and not row.commit_block_exact:
        news |= {"commit_block": seen.commit_block, "commit_block_exact": True}
    if seen.state is Status.REVEALED and seen.reveal_block != row.reveal_block and (row.provisional or not seen.provisional):
        news |= {"reveal_block": seen.reveal_block}
    if seen.reveal_round is not None and _round(seen) != row.reveal_round:
        news |= {"reveal_round": _round(seen)}
    if seen.uid != row.uid:
        news |= {"uid": seen.uid}
    # A seal that is final says nothing of a reveal that is not.
    opened = row.reveal_block is not None
    if not seen.provisional and row.provisional and not (opened and seen.state is Status.SEALED):
        news |= {"provisional": False}
        changes.confirmed.append(row.id)
    if news:
        await tx.update(row.id, **news)
        if row.status == Status.SCORED:
            tx.emit("leaderboard", row.id, {})


async def _withdraw(tx: Tx, rows: Sequence[Commitment], changes: _Changes, seen: Seen, *, horizon: int, head: int) -> None:
    candidates = await fetch_rows(tx.db, "provisional AND commit_block <= ? ORDER BY n", (horizon,))
    if not candidates:
        return
    shown: dict[str, list[Commitment]] = {}
    for commitment in rows:
        shown.setdefault(commitment.hotkey, []).append(commitment)
    for row in candidates:
        if row.last_block > horizon or any(match(commitment, [row]) is not None for commitment in shown.get(row.hotkey, ())):
            continue
        why = Reason(code=fault("withdrawn").code, stage=Stage.CHAIN, hint=fault("withdrawn").advice,
                     message=f"The chain is final up to block {horizon}, and the commitment of block {row.commit_block} is not on it.")
        await tx.move(row, Status.REJECTED, block=head, reason=why, hand=Hand.CHAIN, columns={"provisional": False, "score_mfu": None})
        await tx.all("DELETE FROM receipts WHERE submission = ?", row.id)  # even a spent one: this submission never was
        seen.forget([row.hotkey])
        changes.withdrawn.append(row.id)
        await _acquit_copies(tx, row, head=head)


async def _acquit_copies(tx: Tx, original: Row, *, head: int) -> None:
    """Who was rejected as a copy of something that never was starts over."""
    for row in await fetch_rows(tx.db, "status = 'rejected' AND json_extract(reason, '$.code') = ? AND json_extract(reason, '$.measured') = ?",
                                (COPY, original.id)):
        await tx.move(row, Status.REVEALED, block=head, hand=Hand.CHAIN, note=f"submission {original.id}, of which this was a copy, has been withdrawn")


def commitment_of(row: Row) -> Commitment:
    """A stored row as the chain adapter knows it (`Chain.learn`)."""
    opened = row.reveal_block is not None
    state = Status.SEALED if row.status == Status.SEALED else Status.REVEALED if opened and row.payload else Status.REJECTED
    return Commitment(netuid=row.netuid, hotkey=row.hotkey, uid=row.uid, commit_block=row.commit_block, commit_block_exact=bool(row.commit_block_exact),
                      reveal_block=row.reveal_block, reveal_round=row.reveal_round, state=state, raw=row.raw, provisional=bool(row.provisional),
                      payload=decode_payload(row.payload) if row.payload else None)
