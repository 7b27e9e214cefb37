"""What is known of the validator: the newest of every section, kept up to date by the frames of `/api/v1/live`. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crusades.records import Event, HistoryPoint, Overview, Page, SlotView, Standing, Submission, WeightsView

KEEP_ROWS = 200


class Standings(msgspec.Struct):
    """`/api/v1/leaderboard`."""

    items: list[Standing]


class Points(msgspec.Struct):
    """`/api/v1/history`."""

    items: list[HistoryPoint]


class SlotViews(msgspec.Struct):
    """`/api/v1/slots`."""

    items: list[SlotView]


class QueueView(msgspec.Struct):
    """`/api/v1/queue`."""

    items: list[Submission]
    earlier: dict[str, int] = {}


class Sections(msgspec.Struct):
    """The documents in a frame; absent ones have not changed."""

    overview: Overview | None = None
    leaderboard: Standings | None = None
    history: Points | None = None
    queue: QueueView | None = None
    slots: SlotViews | None = None
    weights: WeightsView | None = None
    submissions: Page | None = None


class Frame(msgspec.Struct):
    """One message of the websocket."""

    type: str
    seq: int | None = None
    sections: Sections | None = None
    events: list[Event] = []
    reason: str = ""


_decoder = msgspec.json.Decoder(Frame)


def decode(message: str | bytes) -> Frame:
    """A frame. msgspec.DecodeError for what a validator of another version, or no validator, sends."""
    return _decoder.decode(message)


@dataclass
class Picture:
    """The state of the dashboard. `apply` is the only writer."""

    seq: int | None = None
    """The last event that was taken; None when a snapshot is needed."""
    overview: Overview | None = None
    leaderboard: list[Standing] = field(default_factory=list)
    history: list[HistoryPoint] = field(default_factory=list)
    queue: list[Submission] = field(default_factory=list)
    earlier: dict[str, int] = field(default_factory=dict)
    slots: list[SlotView] = field(default_factory=list)
    weights: WeightsView = field(default_factory=WeightsView)
    submissions: dict[str, Submission] = field(default_factory=dict)
    """id → submission, newest commit first."""
    ahead: float = 0.0
    """Seconds that the validator's clock is ahead of ours."""

    def apply(self, frame: Frame) -> set[str]:
        """Take a frame; the names of what changed, and the ids of submissions that events named."""
        changed: set[str] = set()
        if frame.type == "snapshot":
            self.seq = frame.seq
            self.submissions = {}
            changed.add("submissions")
        elif frame.type == "resnapshot":
            self.seq = None
        if frame.sections is not None:
            changed |= self._take(frame.sections)
        for event in frame.events:
            self.seq = event.seq
            if event.kind == "submission" and event.data:
                self._put(msgspec.convert(event.data, Submission))
                changed.add("submissions")
            if event.submission_id:
                changed.add(event.submission_id)
        if "submissions" in changed:
            newest = sorted(self.submissions.values(), key=lambda row: (-row.commit_block, -row.created_at))
            self.submissions = {row.id: row for row in newest[:KEEP_ROWS]}
        return changed

    def _put(self, row: Submission) -> None:
        self.submissions[row.id] = row

    def _take(self, sections: Sections) -> set[str]:
        changed = set()
        for name in ("leaderboard", "history", "slots"):
            document: Any = getattr(sections, name)
            if document is not None:
                setattr(self, name, document.items)
                changed.add(name)
        if sections.overview is not None:
            self.overview = sections.overview
            self.ahead = sections.overview.now - time.time()
            changed.add("overview")
        if sections.weights is not None:
            self.weights = sections.weights
            changed.add("weights")
        if sections.queue is not None:
            self.queue, self.earlier = sections.queue.items, sections.queue.earlier
            for row in self.queue:
                self._put(row)
            changed |= {"queue", "submissions"}
        if sections.submissions is not None:
            for row in sections.submissions.items:
                self._put(row)
            changed.add("submissions")
        return changed

    @property
    def now(self) -> float:
        """The validator's clock."""
        return time.time() + self.ahead
