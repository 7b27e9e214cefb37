"""What an operator must be told, with its cause: pure. The daemon gathers the facts and delivers the words.

Nobody notices weights that silently stopped until the earnings stop, so that is the first alert. Each alert has a key: it
is told once when it begins, once when it ends, and again after `REPEAT` while it lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from crusades.records import Record

REPEAT = 6 * 3600.0
"""Seconds until a lasting alert is told again."""
WEIGHTS_LATE_TEMPOS = 2.0
"""A subnet counts weights once each tempo; two without an update are one lost."""
CHAIN_BEHIND = 120.0
"""Seconds without a new head that could be read: ten blocks."""
BACKUP_OLD = 2.0
"""Backups are late after this many of their own intervals."""


class Facts(Record, frozen=True, kw_only=True):
    """What the alerts look at. None: not known (yet), which never raises an alert."""

    weights_age_tempos: float | None = None
    weights_cause: str = ""
    """Why weights are not being set right now, as far as we know."""
    weights_equal: bool | None = None
    registered: bool | None = None
    permit: bool | None = None
    """Of the uid that we are registered under."""
    slots_out: Mapping[str, str] = {}
    """slot → why it is out of service."""
    devices_problem: str = ""
    """Why there is no slot at all."""
    disk_free_bytes: int | None = None
    disk_low_bytes: int = 0
    unread_seconds: float = 0.0
    """Since a head was read whole: a node may push heads and answer nothing."""
    chain_problem: str = ""
    backup_age_seconds: float | None = None
    """Of the newest; since the start while there is none at all."""
    backup_ever: bool = True
    backup_interval_seconds: float = 86_400.0
    late: Mapping[str, str] = {}
    """subsystem → how late."""


class Alert(Record, frozen=True, kw_only=True):
    """One thing that is wrong."""

    key: str
    text: str
    """Complete: what, since when or how much, and the cause."""


def alerts(facts: Facts) -> list[Alert]:
    """Everything that is wrong, in the order in which it costs money."""
    found: list[Alert] = []

    def say(key: str, text: str) -> None:
        found.append(Alert(key=key, text=text))

    if facts.weights_age_tempos is not None and facts.weights_age_tempos > WEIGHTS_LATE_TEMPOS:
        say("weights-old", f"our weights on chain are {facts.weights_age_tempos:.1f} tempos old; cause: {facts.weights_cause or 'unknown, see the log'}")
    if facts.weights_equal is False:
        say("weights-differ", "weights are sent, and for longer than sealed ones take the chain has held nothing that we asked for")
    if facts.registered is False:
        say("not-registered", "the hotkey holds no uid of the subnet: no weights can be set; register it")
    if facts.permit is False:
        say("no-permit", "the hotkey holds no validator permit, so its weights count for nothing: it needs more stake")
    found += [Alert(key=f"slot-{slot}", text=f"slot {slot} is out of service: {why or 'unknown'}") for slot, why in sorted(facts.slots_out.items())]
    if facts.devices_problem:
        say("no-device", facts.devices_problem)
    if facts.disk_free_bytes is not None and facts.disk_free_bytes < facts.disk_low_bytes:
        say("disk-low", f"{facts.disk_free_bytes / 2**30:.1f} GiB free in the state directory; wanted {facts.disk_low_bytes / 2**30:.1f} GiB")
    if facts.unread_seconds > CHAIN_BEHIND:
        say("chain-behind", f"no new block could be read for {facts.unread_seconds:.0f} s; cause: {facts.chain_problem or 'the node sends none'}")
    if facts.backup_age_seconds is not None and facts.backup_age_seconds > BACKUP_OLD * facts.backup_interval_seconds:
        words = "the newest backup is" if facts.backup_ever else "there is no backup, and the daemon is"
        say("backup-old", f"{words} {facts.backup_age_seconds / 3600:.0f} h old; wanted one each {facts.backup_interval_seconds / 3600:.0f} h")
    return found + [Alert(key=f"late-{subsystem}", text=f"{subsystem}: {how}") for subsystem, how in sorted(facts.late.items())]


class Message(Record, frozen=True, kw_only=True):
    """One thing to say now: that an alert began, lasts, or is over."""

    key: str
    text: str
    over: bool = False


@dataclass
class Telling:
    """Remembers what was told, so that people hear of a change and not of every look. What nobody reports as told stays due."""

    _told: dict[str, tuple[float, str]] = field(default_factory=dict)

    def due(self, current: Iterable[Alert], now: float) -> list[Message]:
        """The messages to send now."""
        standing = {alert.key: alert for alert in current}
        over = [Message(key=key, text=f"over: {text}", over=True) for key, (_, text) in self._told.items() if key not in standing]
        return over + [Message(key=key, text=alert.text) for key, alert in standing.items() if key not in self._told or now - self._told[key][0] >= REPEAT]

    def told(self, message: Message, now: float) -> None:
        """It has arrived."""
        if message.over:
            self._told.pop(message.key, None)
        else:
            self._told[message.key] = (now, message.text)
