"""Frames on the two wires: contestant ↔ referee and daemon ↔ referee. Pure: bytes in, records out.

A frame is `u32 header length · u32 payload length · JSON header · raw payload`, little-endian. The header is a tagged
record, decoded by one typed decoder per door; sizes are capped before anything is read or decoded. The contestant's
side of the same format is `inside/wire.py`, which may import nothing of ours.

What a malformed frame means depends on the sender: from a contestant it is the contestant's failure (fault 1306),
from a referee it is ours (fault 2002).
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, TypeVar

import msgspec

from crusades.errors import ProtocolError
from crusades.hparams import Profile
from crusades.records import Audit, Reason, Run

T = TypeVar("T")
PREFIX = struct.Struct("<II")

CONTESTANT_HEADER_CAP = 64 << 10
"""Bytes; a contestant's header holds an error text of at most 16 kB."""
CONTESTANT_PAYLOAD_CAP = 4 << 20
"""Bytes; the largest honest payload is the logits sample, 64 × 1,024 float32 = 256 KiB."""
TRUSTED_HEADER_CAP = 16 << 20
TRUSTED_PAYLOAD_CAP = 256 << 20


_MOST = 1 << 53
Count = Annotated[int, msgspec.Meta(ge=-_MOST, le=_MOST)]
"""A number in a claim. JSON knows integers of any length; what is computed with must fit a float and a database column."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of all frames."""


# ------------------------------------------------------------------------------------------------ contestant → referee: claims


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """The harness is up; torch is imported."""

    versions: dict[str, str]
    limits: dict[str, str] = {}
    """Which limit is enforced by what inside: for the report only."""


class Built(Frame, frozen=True, kw_only=True, tag="built"):
    """The model exists on the meta device."""

    parameters: Count


class Attached(Frame, frozen=True, kw_only=True, tag="attached"):
    """Weights and moments are mapped."""


class Loaded(Frame, frozen=True, kw_only=True, tag="loaded"):
    """train.py is imported and has inner_steps."""


class Ready(Frame, frozen=True, kw_only=True, tag="ready"):
    """A fresh optimizer looks at the restored memory."""

    run: Count


class Next(Frame, frozen=True, kw_only=True, tag="next"):
    """Step `step` − 1 is in the parameters; batch `step` is wanted."""

    step: Count


class Done(Frame, frozen=True, kw_only=True, tag="done"):
    """inner_steps has returned and the device is idle."""

    run: Count
    claimed_ns: Count
    final_loss: float | None
    """None stands for NaN and infinity, which JSON cannot say."""
    total_tokens: Count
    logits_shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=16)]
    batches: Count
    """Batches that inner_steps asked for."""


class Logits(Frame, frozen=True, kw_only=True, tag="logits"):
    """Payload: float32, positions × columns."""

    peak_memory: Count | None = None
    """Bytes: the most that the run's allocator held on the card. Looked up when the clock has stopped: it takes long."""


class Failed(Frame, frozen=True, kw_only=True, tag="failed"):
    """The submission failed in a way that the harness could still tell."""

    stage: str
    """"build", "attach", "load", "run" or "result"."""
    kind: str
    """"rule", "exception", "memory", "missing", "result" or "exit"."""
    message: str
    rule: str = ""
    line: Count | None = None
    peak_memory: Count | None = None
    """Bytes that the submission had reached when it ran out: on a card beside weights and moments, else of the whole process."""


Claim = Hello | Built | Attached | Loaded | Ready | Next | Done | Logits | Failed


# ------------------------------------------------------------------------------------------------ referee → contestant


class ParameterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where one parameter lies in each of the three flat segments."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """In elements from the segment's start."""


class Build(Frame, frozen=True, kw_only=True, tag="build"):
    """Build the model on the meta device."""

    config: dict[str, Any]
    model_type: str
    dtype: str
    attention: str
    device: str
    parameters: tuple[ParameterSpec, ...]
    batch_size: int
    sequence_length: int
    steps: int
    optimizer: dict[str, float]


class Attach(Frame, frozen=True, kw_only=True, tag="attach"):
    """Map the three segments. On CPU the memfd follows as SCM_RIGHTS on the byte after this frame."""

    kind: str
    """"memfd" or "cuda"."""
    nbytes: int
    segments: tuple[int, int, int]
    """Byte offsets of weights, exp_avg and exp_avg_sq."""
    handle: str = ""
    """Hex of the cudaIpcMemHandle_t."""


class Load(Frame, frozen=True, kw_only=True, tag="load"):
    """Import the submission."""

    path: str
    rules: dict[str, Any]
    """The hook's table; empty = rules are skipped."""


class Prepare(Frame, frozen=True, kw_only=True, tag="prepare"):
    """Memory is restored: make a fresh optimizer."""

    run: int


class Go(Frame, frozen=True, kw_only=True, tag="go"):
    """Payload: batch 0, int64 (batch, sequence)."""

    run: int


class Batch(Frame, frozen=True, kw_only=True, tag="batch"):
    """Payload: batch `step`."""

    step: int


class Show(Frame, frozen=True, kw_only=True, tag="show"):
    """Send final_logits at these positions and columns as float32."""

    rows: tuple[int, ...]
    """Flat index over (batch, sequence − 1)."""
    columns: tuple[int, ...]


class Bye(Frame, frozen=True, kw_only=True, tag="bye"):
    """Nothing more is wanted."""


# ------------------------------------------------------------------------------------------------ daemon → referee


class Configure(Frame, frozen=True, kw_only=True, tag="configure"):
    """First frame: what is judged, on which device."""

    profile: Profile
    profile_name: str
    device: str
    """"cpu" or "cuda"; the process sees its own card only."""
    cache_dir: str = ""


class PrepareExams(Frame, frozen=True, kw_only=True, tag="prepare_exams"):
    """Make sure that `wanted` exams exist that this submission may be served. Only while no contestant is connected."""

    submission_id: str
    commit_block: int
    wanted: int


class Connect(Frame, frozen=True, kw_only=True, tag="connect"):
    """The contestant's channel follows as SCM_RIGHTS on the byte after this frame."""

    deadline: float


class LoadSubmission(Frame, frozen=True, kw_only=True, tag="load_submission"):
    """Attach memory and import train.py."""

    path: str
    rules: dict[str, Any]
    submission_id: str
    commit_block: int
    runs: int
    """How many runs are planned, the warm-up included: among them the anchored ones are drawn."""


class DoRun(Frame, frozen=True, kw_only=True, tag="do_run"):
    """One run with one exam."""

    index: int
    """Among those of this contestant; 0 warms up."""
    scored: bool
    submission_id: str
    commit_block: int
    block: int
    repeats: bool = False
    """The run before was void, and this one takes its place."""


class Release(Frame, frozen=True, kw_only=True, tag="release"):
    """The contestant is dead: drop its channel, wait until the card's memory is free, overwrite it."""


class CompareAnchors(Frame, frozen=True, kw_only=True, tag="compare_anchors"):
    """All runs passed and the contestant is dead: audit the anchored steps at its own weights."""


Order = Configure | PrepareExams | Connect | LoadSubmission | DoRun | CompareAnchors | Release


# ------------------------------------------------------------------------------------------------ referee → daemon


class Configured(Frame, frozen=True, kw_only=True, tag="configured"):
    """The model is loaded."""

    device: str
    model: str
    parameters: int
    peak_tflops: float
    peak_source: str
    versions: dict[str, str]
    seconds: float


class ExamsReady(Frame, frozen=True, kw_only=True, tag="exams_ready"):
    """How many this submission may be served now, and what it cost."""

    available: int
    prepared: int
    seconds: float
    retired_seeds: tuple[str, ...] = ()
    """Hex seeds of exams that will never be served again."""


class Connected(Frame, frozen=True, kw_only=True, tag="connected"):
    """The contestant has built its model. One that fails to is our fault: a `RefereeError`."""

    versions: dict[str, str] = {}
    limits: dict[str, str] = {}


class SubmissionLoaded(Frame, frozen=True, kw_only=True, tag="submission_loaded"):
    """train.py is imported (or refused)."""

    reason: Reason | None = None
    contestant_gone: bool = False
    """As in `Ran`."""


class Ran(Frame, frozen=True, kw_only=True, tag="ran"):
    """A run is over. With a `reason` the submission has failed; `run` is there whenever the audit took place."""

    run: Run | None = None
    reason: Reason | None = None
    contestant_gone: bool = False
    """The channel ended: the daemon knows the exit status and may say more."""


class AnchoredRun(Frame, frozen=True, kw_only=True, tag="anchored_run"):
    """The whole audit of a run whose step was compared once more."""

    place: int
    """Its place among the runs that this contestant made."""
    step: int
    """Which step (0-based)."""
    audit: Audit
    reason: Reason | None = None


class AnchorsCompared(Frame, frozen=True, kw_only=True, tag="anchors_compared"):
    """What the anchored steps say."""

    runs: tuple[AnchoredRun, ...]
    seconds: float


class Released(Frame, frozen=True, kw_only=True, tag="released"):
    """The slot is clean."""

    seconds: float


class RefereeError(Frame, frozen=True, kw_only=True, tag="referee_error"):
    """Our own failure; the referee exits after it."""

    message: str
    code: int = 2002


Report = Configured | ExamsReady | Connected | SubmissionLoaded | Ran | AnchorsCompared | Released | RefereeError

_encoder = msgspec.json.Encoder()
claims = msgspec.json.Decoder(Claim)
orders = msgspec.json.Decoder(Order)
reports = msgspec.json.Decoder(Report)


def encode(frame: Frame, payload: bytes = b"") -> bytes:
    """One frame as bytes. The payload is copied once."""
    header = _encoder.encode(frame)
    return PREFIX.pack(len(header), len(payload)) + header + payload


def decode_prefix(raw: bytes, *, header_cap: int, payload_cap: int) -> tuple[int, int]:
    """Lengths of header and payload. Raises ProtocolError beyond the caps or for an empty header."""
    header, payload = PREFIX.unpack(raw)
    if not 0 < header <= header_cap or payload > payload_cap:
        raise ProtocolError(f"a frame claims {header} + {payload} bytes; at most {header_cap} + {payload_cap} are allowed")
    return header, payload


def decode_header(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """The header as a record. Raises ProtocolError with the path of what is wrong."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # what stands before the tag is skipped level by level
        raise ProtocolError(f"a frame's header cannot be read: {error}") from error
