"""The vocabulary: frozen records that pass between layers, are stored, and go out as JSON. Read this first.

Times are Unix seconds (float, UTC). Blocks are chain block numbers. MFU is in percent. Every record rejects unknown
fields when decoded, so a typo or a newer writer is an error with a path, not a silent loss.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records."""


# ------------------------------------------------------------------------------------------------ states


class Status(StrEnum):
    """Where a submission is in its life (design.md §4)."""

    SEALED = "sealed"
    REVEALED = "revealed"
    FETCHED = "fetched"
    CHECKED = "checked"
    QUEUED = "queued"
    RUNNING = "running"
    SCORED = "scored"
    REJECTED = "rejected"
    FAULTED = "faulted"

    @property
    def final(self) -> bool:
        """Nothing more will happen to it by itself."""
        return self in (Status.SCORED, Status.REJECTED, Status.FAULTED)


class Outcome(StrEnum):
    """What a judge says."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAULT = "fault"


class Stage(StrEnum):
    """Where in its life something happened."""

    CHAIN = "chain"
    FETCH = "fetch"
    CHECK = "check"
    LOAD = "load"
    WARMUP = "warmup"
    RUN = "run"
    AUDIT = "audit"
    SCORE = "score"


# ------------------------------------------------------------------------------------------------ the chain


class Payload(Record, frozen=True, kw_only=True):
    """What a miner committed (design.md §7.4)."""

    sha256: str
    """Lower-case hex of the file's SHA-256: 64 digits, or the older form's first 32."""
    url: str
    receipt: str | None = None
    """`<block>-<index>` of a fee transfer, when the commitment names one."""


class Commitment(Record, frozen=True, kw_only=True):
    """One commitment of one hotkey, as read from the chain. `payload` is None while sealed or when it is not ours."""

    netuid: int
    hotkey: str
    """SS58 address."""
    uid: int | None
    """The uid that held the hotkey when it was read; None when not registered."""
    commit_block: int
    """Block of the `set_commitment` extrinsic; the reveal block when the seal was never seen."""
    commit_block_exact: bool = True
    """False when the commit block is only known to be no later than the reveal."""
    reveal_block: int | None = None
    reveal_round: int | None = None
    """drand round that opens the seal."""
    state: Status = Status.SEALED
    """SEALED, REVEALED, or REJECTED with `reason`."""
    payload: Payload | None = None
    raw: str = ""
    """The plaintext as text with unprintable bytes escaped, at most 1,024 characters; for people."""
    reason: Reason | None = None
    provisional: bool = True
    """Read at the best head; finality confirms or withdraws it."""

    @property
    def submission_id(self) -> str:
        """Stable name: 16 hex digits over who committed when."""
        return hashlib.sha256(f"{self.netuid}:{self.hotkey}:{self.commit_block}".encode()).hexdigest()[:16]


def next_name(submission_id: str) -> str:
    """What a submission is called whose own name is taken: that of one whose commit block was not known when it was opened, and which took
    the name of the block of its opening, in which this one was committed."""
    return hashlib.sha256(f"{submission_id}+".encode()).hexdigest()[:16]


class Neuron(Record, frozen=True, kw_only=True):
    """One registered key of the subnet."""

    uid: int
    hotkey: str
    coldkey: str = ""
    stake: float = 0.0
    """In alpha as the chain weighs it."""
    validator_permit: bool = False
    registered_block: int = 0
    last_update: int = 0


# ------------------------------------------------------------------------------------------------ verdicts


class Reason(Record, frozen=True, kw_only=True):
    """Why something was rejected, void or delayed, for people: what, where, measured against which limit, what to do."""

    code: int
    """Row of the fault table (`crusades.faults`)."""
    stage: Stage
    message: str
    """One or two sentences, complete without the other fields."""
    rule: str = ""
    """Rule id (`R101` of the rule table) or statistic of the audit (`gradient_error`), where one applies."""
    line: int | None = None
    """1-based line in train.py."""
    measured: float | str | None = None
    limit: float | str | None = None
    hint: str = ""
    """What to do about it."""


class Finding(Record, frozen=True, kw_only=True):
    """One static finding of the rule scanner, like a linter's."""

    rule: str
    line: int
    column: int
    """1-based, in characters."""
    message: str
    why: str
    instead: str
    end_line: int | None = None
    end_column: int | None = None


class Statistic(Record, frozen=True, kw_only=True):
    """One number of the audit."""

    name: str
    value: float | None
    """None: not a finite number, which never passes."""
    limit: float | None
    """None: reported, not judged."""
    where: str = ""
    """The worst place in words ("step 5, layers 20 to 35")."""

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit; a statistic without a limit always is."""
        return self.limit is None or (self.value is not None and self.value <= self.limit)


class Audit(Record, frozen=True, kw_only=True):
    """Everything the audit measured in one run. `worst` is the judged statistic nearest to (or furthest past) its limit."""

    worst: str
    words: str
    """The worst statistic in words a miner understands."""
    statistics: tuple[Statistic, ...]

    @property
    def passed(self) -> bool:
        """Whether every judged statistic is within its limit."""
        return all(s.passed for s in self.statistics)


class Run(Record, frozen=True, kw_only=True):
    """One run of inner_steps: the first of each round warms up, the others are scored."""

    index: int
    scored: bool
    seconds: float
    """The referee's clock, its own reads and copies subtracted."""
    credited_seconds: float | None = None
    """What `mfu` is computed from, where it is more than `seconds`: a late step counts as no faster than one that was verified."""
    claimed_seconds: float | None
    """The contestant's own clock: a claim, for comparison only."""
    read_seconds: float
    """Time of the referee's secret reads, already subtracted from `seconds`."""
    copy_seconds: float = 0.0
    """Time of its pauses to copy all weights, likewise."""
    excess_seconds: float = 0.0
    """What reads and copies took beyond their time on an idle device: the contestant's, not subtracted."""
    mfu: float
    tokens_per_second: float
    final_loss: float | None
    """As claimed; None when it is not finite."""
    step_seconds: tuple[float, ...] = ()
    """GO or batch s released → step s read; the referee's clock, reads and copies subtracted. Their sum is `seconds`."""
    peak_memory_bytes: int | None = None
    """As claimed by the contestant's allocator."""
    audit: Audit
    telemetry: dict[str, float] = {}
    """Device telemetry through the run: mean SM clock, power, temperature, throttle reasons …"""
    void: str = ""
    """Why this run does not count (hardware, never the submission); empty for a run that counts."""


class Verdict(Record, frozen=True, kw_only=True):
    """The result of one evaluation: what `crusades bench --json` prints and the store keeps (design.md §7.2)."""

    verdict: Outcome
    code: int = 0
    """Row of the fault table; 0 when accepted."""
    rule: str = ""
    stage: Stage | None = None
    message: str = ""
    measured: float | str | None = None
    limit: float | str | None = None
    line: int | None = None
    hint: str = ""
    score_mfu: float | None = None
    """Median MFU in percent over the scored runs; None unless accepted."""
    runs: tuple[Run, ...] = ()
    device: str = ""
    peak_tflops: float = 0.0
    peak_source: str = ""
    """"table", "hparams" or "measured": where the peak comes from."""
    model: str = ""
    profile: str = ""
    rules_version: str = ""
    environment: dict[str, str | None] = {}
    """Versions, driver (None without a card), sha256 of the source, how limits were enforced."""
    output_tail: str = ""
    """The last of the submission's stdout and stderr; for its miner only."""
    notes: tuple[str, ...] = ()
    """What is to be known beside it: no sandbox, rules skipped, a run credited with more time than it took, a second round …"""

    @property
    def rounds(self) -> int:
        """How many contestants made its runs, each with a warm-up of its own: a second one where the first one's were uneven, unless
        that failed before its warm-up was over."""
        return sum(not run.scored for run in self.runs)

    @property
    def reason(self) -> Reason | None:
        """The reason alone; None when accepted."""
        if self.verdict is Outcome.ACCEPTED:
            return None
        return Reason(code=self.code, stage=self.stage or Stage.RUN, message=self.message, rule=self.rule, line=self.line,
                      measured=self.measured, limit=self.limit, hint=self.hint)


def rejected(reason: Reason, **extra: Any) -> Verdict:
    """A verdict that carries `reason`; its outcome follows from whose fault the code names."""
    outcome = Outcome.REJECTED if reason.code // 1000 == 1 else Outcome.FAULT
    return Verdict(verdict=outcome, code=reason.code, rule=reason.rule, stage=reason.stage, message=reason.message,
                   measured=reason.measured, limit=reason.limit, line=reason.line, hint=reason.hint, **extra)


class Source(Record, frozen=True, kw_only=True):
    """A fetched train.py: exactly the bytes whose hash was committed."""

    sha256: str
    """64 hex digits, computed by us."""
    content: bytes
    url: str
    """The URL that served it, after mapping and redirects."""
    fetched_at: float

    @property
    def text(self) -> str:
        """The source; `fetch` has proved that it is UTF-8."""
        return self.content.decode("utf-8")


# ------------------------------------------------------------------------------------------------ the store's views, and the API's


class Transition(Record, frozen=True, kw_only=True):
    """One row of a submission's history; written before its side effect."""

    status: Status
    at: float
    block: int | None
    reason: Reason | None = None
    note: str = ""


class Submission(Record, frozen=True, kw_only=True):
    """One submission as the API and every client sees it."""

    id: str
    netuid: int
    hotkey: str
    uid: int | None
    status: Status
    verdict: Outcome | None = None
    """None until judged."""
    commit_block: int
    commit_block_exact: bool = True
    """False: only known to be no later."""
    reveal_block: int | None = None
    reveal_round: int | None = None
    """Drand round that it was sealed to."""
    reveal_expected_at: float | None = None
    """When that round is published; None when it had been before the seal was seen: it then opens as the chain likes (dev)."""
    url: str = ""
    sha256: str = ""
    score_mfu: float | None = None
    reason: Reason | None = None
    created_at: float
    updated_at: float
    attempts: int = 0
    """Evaluations begun; more than one only after faults of ours."""
    provisional: bool = False
    rules_version: str = ""
    device: str = ""
    queue_position: int | None = None
    """1 is next; None unless queued."""
    progress: str = ""
    """While running: "run 2 of 5"."""


class SubmissionDetail(Record, frozen=True, kw_only=True):
    """`submissions/{id}`."""

    submission: Submission
    transitions: tuple[Transition, ...]
    verdict: Verdict | None = None


class Standing(Record, frozen=True, kw_only=True):
    """One row of the leaderboard; the best accepted submission of each hotkey."""

    rank: int
    submission_id: str
    hotkey: str
    uid: int | None
    score_mfu: float
    commit_block: int
    weight: float
    """Share of the weights that this row gets, 0 … 1."""
    why: str = ""
    """"leads since block 120", "0.4 % behind the leader; needs 1 %"."""


class HistoryPoint(Record, frozen=True, kw_only=True):
    """One scored submission in time: for the MFU history chart."""

    at: float
    block: int
    submission_id: str
    hotkey: str
    score_mfu: float
    leader_mfu: float
    """The leader's score once this one was counted."""
    took_lead: bool


class SlotView(Record, frozen=True, kw_only=True):
    """One device and what it is doing."""

    name: str
    """"cpu", "cuda:0"."""
    device: str
    state: str
    """"warming", "idle", "running", "out of service"."""
    submission_id: str | None = None
    detail: str = ""
    since: float = 0.0


class WeightsView(Record, frozen=True, kw_only=True):
    """What we asked the chain for and what it holds."""

    asked: dict[int, float] = {}
    """uid → share of 1."""
    on_chain: dict[int, float] = {}
    """As read back, normalised to shares of 1."""
    asked_at: float | None = None
    asked_block: int | None = None
    applied_block: int | None = None
    equal: bool | None = None
    """Whether on_chain equals asked; None before anything was asked."""
    age_blocks: int | None = None
    held: str = ""
    """Why weights are not being set right now; empty when they are."""


class Overview(Record, frozen=True, kw_only=True):
    """`/api/v1/overview`: one look at the validator."""

    version: str
    network: str
    netuid: int
    hotkey: str
    uid: int | None
    block: int | None
    finalized_block: int | None
    started_at: float
    now: float
    rules_version: str
    profile: str
    model: str
    counts: dict[str, int]
    """status → number of submissions."""
    leader: Standing | None
    slots: tuple[SlotView, ...]
    weights: WeightsView
    ready: bool
    problems: tuple[str, ...] = ()
    """What is wrong right now, in words; empty when all is well."""
    notice: str = ""
    """Shown on every page: "this is a development network, no real chain"."""


class Page(Record, frozen=True, kw_only=True):
    """A cursor page of submissions, newest first."""

    items: tuple[Submission, ...]
    next_cursor: str | None = None


class Event(Record, frozen=True, kw_only=True):
    """One published change; sequence numbers have no gaps within one store."""

    seq: int
    at: float
    kind: str
    """"submission", "run", "leaderboard", "weights", "slot", "block", "exams"."""
    submission_id: str | None = None
    data: dict[str, Any] = {}
    """The changed record as JSON-ready builtins: a Submission for "submission", a Run for "run", a SlotView for "slot", the seeds of exams that a slot
    will never serve again for "exams" …"""


class ApiError(Record, frozen=True, kw_only=True):
    """The one shape of every error answer."""

    error: str
    """Machine-readable: "not_found", "not_judged_yet", "bad_request"."""
    message: str
    status: int


def to_builtins(value: Any) -> Any:
    """A record as JSON-ready dicts, lists, strings and numbers (keys of dicts as strings)."""
    return msgspec.to_builtins(value, str_keys=True)


def to_json(value: Any, *, indent: int = 0) -> bytes:
    """A record as JSON. NaN and infinity become null, as JSON has no words for them."""
    raw = msgspec.json.encode(value)
    return msgspec.json.format(raw, indent=indent) if indent else raw



