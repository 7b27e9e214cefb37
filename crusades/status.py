"""`crusades status`: where submissions are, and why, asked of a validator over HTTP and told as text or JSON.

Everything in the answer may have been written by strangers, so all of it is made plain before it reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import httpx
import msgspec

from crusades.errors import FetchFault
from crusades.faults import FAULTS, Whose
from crusades.records import ApiError, Overview, Page, Reason, Standing, Submission
from crusades.tui.address import base_url
from crusades.tui.plain import plain
from crusades.tui.text import opening

T = TypeVar("T")
DEADLINE = 10.0


class _Leaderboard(msgspec.Struct):
    items: list[Standing]


class Validator:
    """One connection to one validator, as a context manager.

    Errors: UsageError for an address that is none; FetchFault when nobody answers or the answer is no validator's.
    """

    def __init__(self, url: str) -> None:
        self._base = base_url(url)
        self._http = httpx.Client(base_url=f"{self._base}/api/v1", timeout=DEADLINE, trust_env=False)

    def __enter__(self) -> Validator:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, path: str, kind: type[T], **query: str) -> T:
        """One document."""
        try:
            return _decoded(self._http.get(path, params=query), kind)
        except httpx.HTTPError as error:
            raise FetchFault(f"no answer from the validator at {self._base} ({plain(error, 200)}); give its address with --url HOST:PORT") from error
        except msgspec.MsgspecError as error:
            raise FetchFault(f"what answers at {self._base} is not a crusades validator of this version ({plain(error, 200)})") from error


def _decoded(answer: httpx.Response, kind: type[T]) -> T:
    if answer.status_code != 200:
        try:
            told = msgspec.json.decode(answer.content, type=ApiError).message
        except msgspec.MsgspecError:
            answer.raise_for_status()
            raise
        raise FetchFault(f"the validator refused: {plain(told, 300)}")
    return msgspec.json.decode(answer.content, type=kind)


def status_text(overview: Overview, board: Sequence[Standing], submissions: Sequence[Submission], hotkey: str | None) -> str:
    """The validator in a line, the hotkey's place, then every submission with what it waits for or why it failed."""
    lines = [_validator(overview)]
    if overview.notice:
        lines.append(plain(overview.notice, 300))
    lines += [f"problem: {plain(problem, 300)}" for problem in overview.problems]
    if hotkey:
        mine = next((row for row in board if row.hotkey == hotkey), None)
        lines.append(f"rank {mine.rank} of {len(board)} with {mine.score_mfu:.3f} % MFU; {plain(mine.why, 200)}" if mine else "not on the leaderboard")
    elif overview.leader:
        lines.append(f"leader: {plain(overview.leader.hotkey, 80)} with {overview.leader.score_mfu:.3f} % MFU")
    lines.append("")
    if not submissions:
        lines.append(f"no submission of {plain(hotkey, 80)} has been seen" if hotkey else "no submissions yet")
    for row in submissions:
        lines += _submission(row, overview.now, with_hotkey=not hotkey)
    return "\n".join(lines)


def _validator(overview: Overview) -> str:
    block = f"block {overview.block}" if overview.block is not None else "no block yet"
    waiting = f"{overview.counts.get('queued', 0)} queued, {overview.counts.get('running', 0)} running"
    ready = "ready" if overview.ready else "getting ready"
    return f"{plain(overview.network, 60)}, subnet {overview.netuid}, {block}, {ready}: {waiting}; rules {plain(overview.rules_version, 60)}"


def _submission(row: Submission, now: float, *, with_hotkey: bool) -> list[str]:
    score = f"{row.score_mfu:.3f} % MFU" if row.score_mfu is not None else ""
    place = f"number {row.queue_position} in the queue" if row.queue_position else plain(row.progress, 80)
    place = place or opening(row, now)
    final = "not final on chain yet" if row.provisional else ""
    facts = [row.status.value.ljust(8), row.id, f"block {row.commit_block}", plain(row.hotkey, 80) if with_hotkey else "", score, place, final, _ago(now, row.updated_at), plain(row.url, 300)]
    return ["  ".join(fact for fact in facts if fact), *(_reason(row.reason) if row.reason else [])]


def _reason(why: Reason) -> list[str]:
    fault = FAULTS.get(why.code)
    ours = f" (the {fault.whose.value}'s fault, not yours)" if fault and fault.whose is not Whose.SUBMISSION else ""
    line = f", line {why.line}" if why.line is not None and f"line {why.line}" not in why.message.lower() else ""
    told = [f"    [{why.code}{' ' + plain(why.rule, 40) if why.rule else ''}] {plain(why.message)}{line}{ours}"]
    if why.measured is not None:
        told.append(f"    measured {_number(why.measured)}" + (f", limit {_number(why.limit)}" if why.limit is not None else ""))
    if why.hint:
        told.append(f"    to do: {plain(why.hint)}")
    return told


def _number(value: float | str) -> str:
    return plain(value, 100) if isinstance(value, str) else f"{value:.4g}"


def _ago(now: float, at: float) -> str:
    seconds = max(0, int(now - at))
    size, unit = next((size, unit) for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (0, "s")) if seconds >= size)
    return f"{seconds // size if size else 0} {unit} ago"


def run_status(url: str, hotkey: str | None, *, json: bool) -> int:
    """The command: the newest 50 submissions (of one hotkey). Prints; 0 when a validator answered."""
    with Validator(url) as validator:
        submissions = validator.ask("/submissions", Page, limit="50", **({"hotkey": hotkey} if hotkey else {})).items
        if json:
            print(msgspec.json.format(msgspec.json.encode(submissions), indent=2).decode())
            return 0
        board = validator.ask("/leaderboard", _Leaderboard, limit="10000").items
        print(status_text(validator.ask("/overview", Overview), board, submissions, hotkey))
    return 0
