"""What a miner's machine remembers of its submissions: one file each, written before anything leaves, so that nothing is paid
or committed twice."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from crusades.chain_records import Sent
from crusades.errors import UsageError
from crusades.records import Commitment, Payload, Reason, Record


class Ticket(Record, frozen=True, kw_only=True):
    """One submission as its miner knows it: enough to go on after a crash at any point."""

    network: str
    genesis: str
    """The chain's genesis hash, so that a dev ticket never speaks about mainnet."""
    netuid: int
    hotkey: str
    payload: Payload
    created_at: float
    stage: str = "prepared"
    """prepared, paying, paid, committing, then a `Status` value."""
    reveal_blocks: int = 20
    sent: Sent | None = None
    """The extrinsic on its way, whose outcome may not be known yet; once it is sealed, the commitment's own, so that it is
    found again where a reorganisation put it."""
    commit_block: int | None = None
    reveal_round: int | None = None
    reveal_block_estimate: int | None = None
    reason: Reason | None = None

    @property
    def submission_id(self) -> str | None:
        """The id that every validator gives it; None before it is committed."""
        if self.commit_block is None:
            return None
        return Commitment(netuid=self.netuid, hotkey=self.hotkey, uid=None, commit_block=self.commit_block).submission_id

    def may_be_in(self, block: int) -> bool:
        """Whether the block may hold this commitment, a reorganisation counted."""
        return block == self.commit_block or (self.sent is not None and self.sent.first <= block <= self.sent.last)

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.stage in ("scored", "rejected", "faulted")


class Tickets:
    """The tickets of one machine: a folder with one JSON file each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, ticket: Ticket) -> Path:
        """Where it is kept."""
        return self.folder / f"{ticket.network.replace('/', '_').replace(':', '_')}-{ticket.netuid}-{ticket.hotkey}-{ticket.created_at:.6f}.json"

    def save(self, ticket: Ticket) -> Ticket:
        """Write it through to the disk before returning. UsageError when the folder cannot be written."""
        path = self.path(ticket)
        temporary = path.with_name(path.name + ".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(ticket), indent=1))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise UsageError(f"cannot keep the submission's ticket in {self.folder}: {error.strerror}") from error
        return ticket

    def all(self) -> list[Ticket]:
        """All readable tickets, newest first; a file that is none is passed over."""
        found = []
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Ticket))
            except (msgspec.DecodeError, OSError):
                continue
        return sorted(found, key=lambda t: -t.created_at)

    def of(self, genesis: str, netuid: int, hotkey: str) -> list[Ticket]:
        """Those of one hotkey on one chain, newest first."""
        return [ticket for ticket in self.all() if (ticket.genesis, ticket.netuid, ticket.hotkey) == (genesis, netuid, hotkey)]

    def unfinished(self, genesis: str, netuid: int, hotkey: str, payload: Payload | None = None) -> Ticket | None:
        """The newest ticket of this hotkey on this chain that is not over (for this file, when given): what `--wait` goes on with."""
        for ticket in self.of(genesis, netuid, hotkey):
            same = payload is None or (ticket.payload.sha256, ticket.payload.url) == (payload.sha256, payload.url)
            if same and not ticket.over:
                return ticket
        return None
