"""The only reader of `hparams.toml`: one struct per owning module, each key a field with its unit and its reason.

An unknown key or a wrong type stops the program at start with the path of the key. A module receives its own section
only. Tuning never becomes a command-line flag.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from crusades import hparams_check as checks
from crusades.errors import ConfigError
from crusades.places import shipped

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NotNegative = Annotated[float, Meta(ge=0.0)]
Decay = Annotated[float, Meta(ge=0.0, lt=1.0)]
"""Of a moving average: at 1 AdamW's bias correction divides by zero."""
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections."""


class Competition(Section, frozen=True, kw_only=True):
    """Identifies the rules in force (design.md §4). Owned by `rules` and `scoring`."""

    version: str = "1"
    """Bumped by whoever changes anything a miner can feel; shown with a hash of this file."""
    profile: str = "tiny"
    """The profile that this validator judges by."""
    dev_profile: str = "tiny"
    """The profile on `--network dev`."""


class Scoring(Section, frozen=True, kw_only=True):
    """Owned by `scoring`."""

    margin: Share = 0.005
    """A challenger leads only when its score exceeds the leader's by this share; 0 = any improvement."""
    winner_share: Share = 1.0
    """Share of the unburned weights that goes to the leader; the rest is split over the runners-up by rank."""
    runners_up: Whole = 0
    """How many ranks after the leader share what `winner_share` leaves."""
    burn: Share = 0.0
    """Share that goes to the subnet owner's uid. It costs the whole subnet emission (docs/operating.md)."""


class Chain(Section, frozen=True, kw_only=True):
    """Owned by `chain`. Times in seconds, spans in blocks."""

    endpoints: tuple[str, ...] = ()
    """Fallback websocket endpoints, tried in order after the network's own; also asked for old blocks that a node has pruned."""
    call_deadline: Positive = 30.0
    """Every call to the node ends within this many seconds, answered or not."""
    redial_first: Positive = 0.5
    redial_max: Positive = 4.0
    """Back-off between redials: doubled from the first to the max. Kept short, so that a node that is back is noticed within 5 s."""
    poll_interval: Positive = 3.0
    """How often the head is looked at when no subscription delivers it."""
    reveal_blocks: Count = 20
    """`crusades submit` seals for the drand round expected this many blocks ahead."""
    block_time: Positive = 12.0
    """Seconds a block is expected to take."""
    min_commit_interval: Whole = 0
    """Blocks that must lie between two counted commitments of one hotkey; 0 = no limit."""
    weights_interval: Count = 100
    """Set weights at most this often; the chain's own rate limit applies on top."""
    weights_deadline: Positive = 120.0
    """Seconds one attempt to set weights may take in all."""
    version_key: Whole = 0
    fee_rao: Whole = 0
    """Fee per submission in rao (1e-9 TAO); 0 = no fee."""
    fee_address: str = ""
    """SS58 address that receives the fee."""


class Fetch(Section, frozen=True, kw_only=True):
    """Owned by `fetch`."""

    max_bytes: Count = 500_000
    """Counted while streaming, after decompression."""
    connect_timeout: Positive = 10.0
    total_timeout: Positive = 30.0
    """Seconds for all hops together."""
    max_redirects: Whole = 3
    grace_hours: Positive = 6.0
    """How long an unreachable host is asked again before it is the submission's failure."""
    allow_loopback: bool = False
    """Only a development network wants this; it is forced on by `--network dev`."""


class Sandbox(Section, frozen=True, kw_only=True):
    """Owned by `sandbox`. Bytes unless said otherwise."""

    memory_bytes: Count = 16 << 30
    """Resident memory of the contestant and its children (cgroup where delegated); less on a machine without room for it."""
    max_processes: Count = 512
    """Threads and processes together."""
    tmp_bytes: Count = 4 << 30
    """Size of /tmp inside: compiler caches live there."""
    output_bytes: Count = 64 << 10
    """How much of stdout and stderr is kept: the last of it."""
    max_open_files: Count = 1024
    start_deadline: Positive = 60.0
    """Seconds from spawn to the harness's first frame."""


class Deadlines(Section, frozen=True, kw_only=True):
    """Seconds, wall clock. Owned by `bench.evaluate`."""

    load: Positive = 60.0
    """Importing train.py."""
    warmup: Positive = 900.0
    """Run 0, compilation included."""
    run: Positive = 120.0
    """Each scored run."""
    result: Positive = 60.0
    """Answering the questions about the result, off the clock."""


class Model(Section, frozen=True, kw_only=True):
    """Where the weights come from: exactly one of `config`, `path` and `hub`."""

    config: str = ""
    """Name of a configuration that ships with the project, or path of a JSON file: random initialisation."""
    path: str = ""
    """Local folder in Hugging Face format."""
    hub: str = ""
    """Hub id; `crusades setup` fetches it, nothing else does."""
    revision: str = ""
    package: str = ""
    """Python package that carries a GGUF file (the `smol` profile)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str = "sdpa"
    init_seed_secret: bool = True
    """Random initialisation draws new weights for every exam set, from a secret seed."""
    vocabulary_scale: Positive = 1.0
    """Random rows of the vocabulary (embedding and head) have so many times the configuration's `initializer_range`: a random start's
    softmax is so flat that moments of its rows stand for them at less than bf16's rounding; at twice the range they do not."""


class Data(Section, frozen=True, kw_only=True):
    """Where the tokens come from: `synthetic`, or files, or a hub dataset that `crusades setup` has tokenised."""

    source: Literal["synthetic", "files", "hub"] = "synthetic"
    paths: tuple[str, ...] = ()
    """Text (.txt) or token (.npy, .bin uint32) files for `files`."""
    dataset: str = ""
    revision: str = ""
    """Branch, tag or commit of the dataset; empty = its main branch at the time of `crusades setup`."""
    dataset_config: str = ""
    split: str = "train"
    text_column: str = "text"
    tokenizer: str = ""
    """Hub id or folder; empty = the model's own."""
    max_tokens: Count = 20_000_000
    """How much of the dataset the cache keeps."""


class AuditSettings(Section, frozen=True, kw_only=True):
    """Owned by `bench.referee.audit`: how much is sampled, not how it is judged."""

    coordinates: Count = 1_000_000
    """Secret sample of weights, uniform over the parameters plus a floor per tensor."""
    column_coordinates: Count = 262_144
    """How many of them, in the blocks' matrices and biases, also carry the columns of sequences, cells, slices and single tokens."""
    min_per_tensor: Count = 64
    cells: Count = 32
    """Secret position cells per step."""
    fine_cells: Count = 32
    """The same for an anchored step, whose columns are used once and never kept."""
    tokens: Whole = 64
    """Secret single tokens per step that have columns of their own: whoever leaves a percent of all out meets one in every second step."""
    reference_steps: Count = 1_000_000
    """How many of an exam's steps the reference takes, at most all. Where honest training drifts from the reference's within a
    few steps, late steps are judged where they are anchored, and going on only costs time."""
    group_min: Count = 512
    """A layer, kind or tensor is judged on its own from this many sampled coordinates on."""
    logit_positions: Count = 64
    logit_columns: Count = 1024
    micro_batch: Count = 2
    """Sequences per backward of the reference pass."""
    anchored_runs: Whole = 0
    """Runs of an evaluation of which one step is compared at the contestant's own weights; which ones is secret. Each keeps a
    copy of the weights in host memory; the card keeps room for one, unless this is 0."""
    anchor_steps: Count = 4
    """How many of the last steps may be the anchored one; the weights are copied before each of them."""
    anchor_tolerance: Share = 0.02
    """A late step is credited with at least (1 − this) of its time in the run where it was anchored: the jitter of honest steps.
    With anchored runs, so much of a late step's time is all that shirking it elsewhere could gain."""


class Profile(Section, frozen=True, kw_only=True):
    """One workload: model, data, sizes, limits. Owned by `bench.profile`."""

    model: Model
    data: Data = Data()
    batch_size: Count
    sequence_length: Count
    steps: Count
    runs: Count = 5
    """Scored runs; one warm-up run comes before them."""
    uneven: Share = 0.0
    """Where the fastest scored run is more than this share faster than their median, the evaluation is made once more and the score
    is the median of both; 0 = never. On a host that keeps the card waiting honest runs differ by several percent."""
    learning_rate: Positive = 1e-4
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    device: Literal["cpu", "cuda"] = "cuda"
    guaranteed_bytes: Whole = 0
    """Device memory that a submission finds free when it starts, beside weights and moments, for everything of its process, its
    CUDA context too. What a card has beyond is held, so that every card gives the same; 0 = whatever is left."""
    attention_flops: bool = False
    """Add the PaLM attention term to 6·N FLOPs per token."""
    peak_tflops: NotNegative = 0.0
    """Overrides the device table; 0 = use it."""
    exam_pool: Count = 12
    """Exams kept ready in host memory, warm-up included."""
    deadlines: Deadlines = Deadlines()
    audit: AuditSettings = AuditSettings()
    limits: dict[str, float | tuple[float, ...]] = {}
    """Statistic → limit, one for all steps or one per step, as `crusades calibrate` wrote them; a statistic without a limit is
    reported, not judged, and a validator refuses a profile without any."""
    limits_origin: str = ""
    """How the limits came about: command, device, date."""


class Store(Section, frozen=True, kw_only=True):
    """Owned by `store`."""

    keep_events: Count = 100_000
    keep_backups: Count = 7
    backup_hours: Positive = 24.0


class Web(Section, frozen=True, kw_only=True):
    """Owned by `web`."""

    listen: str = "127.0.0.1:8080"
    max_clients: Count = 1000
    client_queue: Count = 256
    """Events a websocket client may fall behind before it is told to take a new snapshot."""


class Daemon(Section, frozen=True, kw_only=True):
    """Owned by `daemon`."""

    shutdown_grace: Positive = 20.0
    """Seconds a running evaluation gets to end its current run after SIGTERM; none where its runs are not kept (anchored steps)."""
    max_attempts: Count = 3
    """Evaluations of one submission that may end in a fault of ours before it is `faulted`."""
    retry_delay: Positive = 10.0
    heartbeat_url: str = ""
    webhook_url: str = ""
    disk_low_bytes: Count = 2 << 30


class HParams(Section, frozen=True, kw_only=True):
    """The whole file."""

    competition: Competition = Competition()
    scoring: Scoring = Scoring()
    chain: Chain = Chain()
    fetch: Fetch = Fetch()
    sandbox: Sandbox = Sandbox()
    store: Store = Store()
    web: Web = Web()
    daemon: Daemon = Daemon()
    profiles: dict[str, Profile]

    def profile(self, name: str | None = None) -> Profile:
        """The named profile, or the competition's. Raises ConfigError for an unknown one."""
        wanted = name or self.competition.profile
        if wanted not in self.profiles:
            raise ConfigError(f"no profile {wanted!r} in hparams.toml; it has {', '.join(sorted(self.profiles))}")
        return self.profiles[wanted]

    def rules_version(self, name: str | None = None) -> str:
        """`<version>+<8 hex>`: the competition's version and a hash of everything a miner can feel."""
        felt = [self.competition.version, name or self.competition.profile, _felt(self.profile(name)), self.fetch.max_bytes, self.sandbox, self.scoring]
        if self.chain.fee_rao or self.chain.min_commit_interval:  # left out where unused, so that older versions keep their names
            felt += [self.chain.fee_rao, self.chain.fee_address, self.chain.min_commit_interval]
        return f"{self.competition.version}+{hashlib.sha256(msgspec.json.encode(felt)).hexdigest()[:8]}"


LATER = {"audit": ("fine_cells", "reference_steps", "tokens"), "model": ("vocabulary_scale",)}
"""Settings that came after the first versions. Their defaults change nothing in how those judge: what `tokens` measures is judged only
where there is a limit for it, and limits are part of the name."""


def _felt(profile: Profile) -> dict[str, Any]:
    """A profile without the settings of `LATER` that have their defaults: older versions keep their names."""
    found: dict[str, Any] = msgspec.to_builtins(profile)
    for section, default in (("audit", AuditSettings()), ("model", Model())):
        for name in LATER[section]:
            if found[section][name] == getattr(default, name):
                del found[section][name]
    if not profile.uneven:
        del found["uneven"]
    return found


def default_path() -> Path:
    """`hparams.toml` of the working directory if there is one, else the one that ships with the package."""
    here = Path("hparams.toml")
    return here if here.is_file() else shipped("hparams.toml")


def load(path: Path | None = None) -> HParams:
    """Read and validate. Raises ConfigError with the path of the offending key."""
    path = path or default_path()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        hparams = _read(tomllib.loads(raw.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for name in (hparams.competition.profile, hparams.competition.dev_profile):
        hparams.profile(name)
    return hparams


def _read(table: dict[str, Any]) -> HParams:
    """The whole file, with profiles one by one, so that each complaint names its profile."""
    checks.check_finite(table)
    for name, text in checks.typed(table.get("profiles", {}), dict, "profiles").items():
        limits = text.get("limits", {}) if isinstance(text, dict) else {}
        profile = checks.typed({**text, "limits": {}} if limits else text, Profile, f"profiles.{name}")
        checks.check_limits(limits, f"profiles.{name}.limits", profile.steps)
        checks.check_profile(name, profile)
    whole = checks.typed(table, HParams)
    for name, profile in whole.profiles.items():
        checks.check_reference(name, profile)
    checks.check_fee(whole.chain)
    return whole
