"""What types cannot say about `hparams.toml`, and the full path of a key that is wrong. Pure; `hparams` is its only user but for
`must_judge`.

msgspec leaves the keys of a dictionary out of its messages, so whatever has a name of its own is converted by itself.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from crusades.errors import ConfigError

if TYPE_CHECKING:
    from crusades.hparams import Chain, HParams, Profile

T = TypeVar("T")

_ANCHORED = (
    "gradient_error", "gradient_projection", "even_error", "even_projection", "typical_error", "layer_typical_error", "kind_typical_error", "outliers", "silent", "layer_error", "layer_projection", "kind_error", "kind_projection",
    "tensor_error", "tensor_projection", "attention_error", "last_attention_error", "seen_error", "seen_projection", "seen_typical_error", "unseen_error", "unseen_projection", "unseen_typical_error", "unseen_moment_error", "sequence_attribution", "cell_attribution", "cell_spread", "slice_attribution", "token_attribution", "softmax_attribution",
)  # fmt: skip
STATISTICS = frozenset({
    *_ANCHORED, *(f"anchor_{name}" for name in _ANCHORED), "stale_gradient", "step_error", "unmoved", "update_error",
    "optimizer_second_moment", "optimizer_weights", "final_loss", "final_logits", "total_tokens", "anchor_final_loss", "anchor_final_logits", "anchor_unseen_group_spread",
})  # fmt: skip
"""Everything that the referee measures: a limit under any other name would judge nothing. A test compares this with the referee."""


UNJUDGED = 1e9
"""The limit of a step that a statistic cannot judge: TOML and JSON have no common word for infinity."""


def typed(value: Any, kind: type[T], at: str = "") -> T:
    """`value`, which stands at the key `at`, as `kind`. Raises ConfigError with the full path of the offending key."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), at)) from error


def _explain(words: str, at: str) -> str:
    what, _, inside = words.partition(" - at `$")
    field = re.search(r"(unknown|required) field `(.*)`", what)
    key = ".".join(part for part in (at, inside.rstrip("`").removeprefix("."), field[2] if field else "") if part)
    if field:
        what = "there is no such key" if field[1] == "unknown" else "is missing"
    return f"{key or 'the whole file'}: {what}"


def check_finite(table: Any, at: str = "") -> None:
    """TOML has words for infinity and NaN, and no bound stops them all. Raises ConfigError."""
    rows = table.items() if isinstance(table, Mapping) else enumerate(table) if isinstance(table, list) else ()
    for name, value in rows:
        key = f"{at}[{name}]" if isinstance(table, list) else f"{at}.{name}".removeprefix(".")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: {value} is not a finite number")
        check_finite(value, key)


def check_limits(limits: Any, at: str, steps: int) -> None:
    """Limits as they stand in the file. Raises ConfigError for one that would judge nothing, or something else than meant."""
    for name, limit in typed(limits, dict, at).items():
        if name not in STATISTICS:
            close = difflib.get_close_matches(name, STATISTICS, 1)
            raise ConfigError(f"{at}.{name}: there is no such statistic{f'; did you mean {close[0]}?' if close else ''}")
        bounds = limit if isinstance(limit, list) else [limit]
        for bound in bounds:
            if typed(bound, float, f"{at}.{name}") < 0:
                raise ConfigError(f"{at}.{name}: {bound} is below 0, so nothing could pass")
        if len(bounds) not in (1, steps):
            raise ConfigError(f"{at}.{name}: {len(bounds)} limits; one for all steps or {steps}, one per step, are needed")


def check_profile(name: str, profile: Profile) -> None:
    """What its keys say together. Raises ConfigError."""
    for words in _contradictions(profile):
        raise ConfigError(f"profiles.{name}.{words}")


def _contradictions(profile: Profile) -> Iterator[str]:
    sources = [key for key in ("config", "path", "hub", "package") if getattr(profile.model, key)]
    if len(sources) != 1:
        yield f"model needs exactly one of config, path, hub, package; it has {sources or 'none'}"
    if profile.data.source == "files" and not profile.data.paths:
        yield 'data.paths is empty though source is "files"'
    if profile.audit.micro_batch > profile.batch_size:
        yield "audit.micro_batch is larger than batch_size"
    if profile.model.vocabulary_scale != 1 and not profile.model.config:
        yield f"model.vocabulary_scale is {profile.model.vocabulary_scale}, and the weights are not drawn: leave it out"
    late = min(profile.audit.anchor_steps, profile.steps - 1)
    if profile.audit.anchored_runs and not late <= profile.audit.anchored_runs <= profile.runs:
        yield (f"audit.anchored_runs is {profile.audit.anchored_runs}: every one of the {late} late steps is to be verified, in scored runs, of which there are {profile.runs}; "
               f"choose 0, or {late} to {profile.runs}")  # fmt: skip
    met = late if profile.audit.anchored_runs else 0
    if (judged := profile.audit.reference_steps + met) < profile.steps:
        yield (f"audit.reference_steps is {profile.audit.reference_steps} and {met} late steps are anchored: {profile.steps - judged} of {profile.steps} steps would not be judged; "
               "raise reference_steps, or anchor more steps")  # fmt: skip


_WHOLE = ("final_loss", "final_logits", "update_error")
"""Statistics that need a reference that took every step."""
_WITHOUT_REFERENCE = ("optimizer_second_moment", "optimizer_weights", "total_tokens")


def check_reference(name: str, profile: Profile) -> None:
    """A step that the reference does not take measures 0, and so do tokens that nobody draws: a limit there would look as if it judged
    something. Raises ConfigError."""
    if not profile.audit.tokens and (empty := [statistic for statistic in profile.limits if statistic.endswith("token_attribution")]):
        raise ConfigError(f"profiles.{name}.audit.tokens is 0, and limits.{empty[0]} would judge nothing: remove that limit, or raise audit.tokens")
    known = profile.audit.reference_steps
    if known >= profile.steps:
        return
    for statistic, limit in profile.limits.items():
        if statistic.startswith("anchor_") or statistic in _WITHOUT_REFERENCE:
            continue
        bounds = limit if isinstance(limit, tuple) else (limit,)
        if statistic in _WHOLE or min(bounds[known:] if len(bounds) > 1 else bounds, default=UNJUDGED) < UNJUDGED:
            raise ConfigError(f"profiles.{name}.limits.{statistic} judges steps that the reference does not take (audit.reference_steps = {known}): "
                              "remove the profile's limits, and recalibrate with `crusades calibrate --write`, which leaves them out")  # fmt: skip


def check_fee(chain: Chain) -> None:
    """ConfigError for a fee that nobody can pay: it would cost every submission its place."""
    if chain.fee_rao and not chain.fee_address:
        raise ConfigError("chain.fee_address: is empty though chain.fee_rao asks for a fee; name the SS58 address that receives it, or set fee_rao to 0")
    if chain.fee_address and not is_ss58(chain.fee_address):
        raise ConfigError(f"chain.fee_address: {chain.fee_address!r} is no SS58 address of this chain (they begin with 5); copy the whole of it")


def is_ss58(text: str) -> bool:
    """Whether this is the base58 of prefix 42, the 32 bytes of a key, and their checksum. Written out: the SDK stays in `chain*`."""
    if not text.startswith("5") or len(text) > 64 or any(character not in _BASE58 for character in text):
        return False
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    raw = number.to_bytes(48, "big").lstrip(b"\0")
    return len(raw) == 35 and raw[0] == 42 and hashlib.blake2b(b"SS58PRE" + raw[:33]).digest()[:2] == raw[33:]


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def must_judge(hparams: HParams, *names: str) -> None:
    """ConfigError unless each of these profiles has limits, also for its anchored steps: without them every cheat would be paid."""
    for name in names:
        profile = hparams.profile(name)
        if profile.limits and profile.audit.anchored_runs and not any(statistic.startswith("anchor_") for statistic in profile.limits):
            raise ConfigError(f"profiles.{name}.limits has none for anchored steps (anchor_…), so these would be measured and not judged: "
                              f"measure them with `crusades calibrate --profile {name} --write`, or set audit.anchored_runs to 0")  # fmt: skip
        if not profile.limits:
            raise ConfigError(f"profiles.{name}.limits is empty, so nothing would be judged: "
                              f"measure them with `crusades calibrate --profile {name} --write`, or choose another profile")  # fmt: skip
