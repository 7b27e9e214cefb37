"""A store in memory with the read side that the web server and its clients use, filled with a plausible competition.

`FakeStore.change` is the write: it stores a submission and publishes the event, as the real store does after a commit.
"""

import contextlib
import hashlib
import math
import random
from types import SimpleNamespace

import msgspec
import trio

from crusades.board import Board
from crusades.faults import fault
from crusades.records import (
    Audit,
    Event,
    HistoryPoint,
    Outcome,
    Page,
    Reason,
    Run,
    SlotView,
    Source,
    Stage,
    Standing,
    Statistic,
    Status,
    Submission,
    SubmissionDetail,
    Transition,
    Verdict,
    WeightsView,
    to_builtins,
)

NOW = 1_790_000_000.0
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def hotkey(n):
    rng = random.Random(n)
    return "5" + "".join(rng.choice(ALPHABET) for _ in range(47))


def submission_id(n):
    return hashlib.sha256(f"fake {n}".encode()).hexdigest()[:16]


def audit(worst=0.4, n=0):
    rng = random.Random(n)
    limits = {"gradient_error": 0.21, "gradient_projection": 0.012, "layer_error": 0.33, "kind_projection": 0.04, "sequence_attribution": 0.05,
              "cell_attribution": 0.08, "cell_spread": 0.11, "slice_attribution": 0.06, "optimizer_weights": 2.0, "final_loss": 0.004}  # fmt: skip
    rows = [Statistic(name=name, value=limit * rng.uniform(0.2, 0.6), limit=limit, where=rng.choice(["step 5", "step 3, layers 20 to 35", "lm_head"])) for name, limit in limits.items()]
    rows[5] = Statistic(name="cell_attribution", value=0.08 * worst, limit=0.08, where="step 5, position cell 17")
    rows.append(Statistic(name="surprise_rate", value=0.0003, limit=None, where="step 4"))
    return Audit(worst="cell_attribution", words="the gradient of one cell of tokens in step 5 has 0.41 of the reference's weight" if worst > 1 else "every token counted", statistics=tuple(rows))


def run(index, mfu=50.0, worst=0.4, void="", seed=0):
    seconds = 0.915 * 50 / mfu
    return Run(index=index, scored=index > 0, seconds=seconds, claimed_seconds=seconds * 0.9996, read_seconds=0.0031, mfu=mfu, tokens_per_second=40960 / seconds,
               final_loss=11.42, step_seconds=tuple(seconds / 5 for _ in range(5)), peak_memory_bytes=61_234_567_890, audit=audit(worst, seed + index),
               telemetry={"sm_clock_mhz": 1755.0, "power_w": 612.0, "temperature_c": 63.0}, void=void)  # fmt: skip


def submission(n, status=Status.SCORED, mfu=None, reason=None, **more):
    verdict = {Status.SCORED: Outcome.ACCEPTED, Status.REJECTED: Outcome.REJECTED, Status.FAULTED: Outcome.FAULT}.get(status)
    created = NOW - 86_400 + n * 600
    facts = {"id": submission_id(n), "netuid": 3, "hotkey": hotkey(n % 9), "uid": 11 + n % 9, "status": status, "verdict": verdict, "commit_block": 5_000_000 + n * 50,
             "reveal_block": 5_000_020 + n * 50, "url": f"https://gist.githubusercontent.com/miner{n % 9}/{submission_id(n)}/raw/train.py",
             "sha256": hashlib.sha256(f"code {n}".encode()).hexdigest(), "score_mfu": mfu, "reason": reason, "created_at": created, "updated_at": created + 240,
             "attempts": 0 if status in (Status.SEALED, Status.REVEALED, Status.QUEUED) else 1, "rules_version": "1+0badcafe", "device": "NVIDIA H100 80GB HBM3" if mfu else ""}  # fmt: skip
    if status is Status.SEALED:
        facts |= {"url": "", "sha256": "", "reveal_block": None, "reveal_round": 12_345, "reveal_expected_at": NOW + 240.0}
    return Submission(**{**facts, **more})


AUDIT_REASON = Reason(code=1401, stage=Stage.AUDIT, rule="cell_attribution", measured=0.41, limit=0.08, line=88,
                      message="The gradient of one cell of tokens in step 5 has 0.41 of the weight that the reference gives it: not every token was trained on.",
                      hint=fault("audit").advice)  # fmt: skip
RULE_REASON = Reason(code=1201, stage=Stage.CHECK, rule="R104", line=12, message="Line 12 imports ctypes, which reaches memory that is not the submission's.",
                     hint=fault("rule").advice)  # fmt: skip
COPY_REASON = Reason(code=1005, stage=Stage.CHECK, message="The same program was committed earlier, in block 5000100.", hint=fault("copy").advice)
FAULT_REASON = Reason(code=2003, stage=Stage.RUN, message="The card reported an uncorrectable memory error in three attempts.", hint=fault("device").advice)

CODE = '''"""Baseline with a fused loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    tokens = 0
    for _ in range(num_steps):
        batch = next(data_iterator).to(device, non_blocking=True)
        logits = model(batch[:, :-1]).logits  # <script>alert(1)</script>
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch.numel()
    return InnerStepsResult(logits.detach(), tokens, float(loss))
'''


class FakeStore:
    """The read API of `crusades.store`, in memory."""

    def __init__(self):
        self.rows: dict[str, Submission] = {}
        self.details: dict[str, SubmissionDetail] = {}
        self.sources: dict[str, Source] = {}
        self.run_rows: dict[str, tuple[Run, ...]] = {}
        self.events: list[Event] = []
        self.first_kept = 0
        self.view = WeightsView()
        self.last_seq = 0
        self.subscribers = []
        self.calls = []

    # -- writes

    def publish(self, kind, data, submission_id=None):
        self.last_seq += 1
        event = Event(seq=self.last_seq, at=NOW + self.last_seq, kind=kind, submission_id=submission_id, data=data)
        self.events.append(event)
        for send in list(self.subscribers):
            try:
                send.send_nowait(event)
            except trio.WouldBlock:
                self.subscribers.remove(send)
                send.close()
        return event

    def change(self, row):
        self.rows[row.id] = row
        return self.publish("submission", to_builtins(row), row.id)

    def add_run(self, id_, one):
        self.run_rows[id_] = (*self.run_rows.get(id_, ()), one)
        return self.publish("run", to_builtins(one), id_)

    def judge(self, row, verdict):
        self.details[row.id] = SubmissionDetail(submission=row, transitions=transitions(row), verdict=verdict)
        self.run_rows[row.id] = verdict.runs
        return self.change(row)

    def set_weights(self, view):
        self.view = view
        return self.publish("weights", to_builtins(view))

    # -- reads

    def placed(self, rows):
        """With their places in the queue, as the store gives them."""
        queue = [r.id for r in sorted(self.rows.values(), key=lambda r: (r.commit_block, r.uid or 0)) if r.status is Status.QUEUED]
        return [msgspec.structs.replace(r, queue_position=queue.index(r.id) + 1) if r.id in queue else r for r in rows]

    async def submissions(self, *, status=None, hotkey=None, sha256=None, cursor=None, limit=50):
        await trio.lowlevel.checkpoint()
        self.calls.append("submissions")
        if cursor is not None and not cursor.isdigit():
            raise ValueError(cursor)
        rows = [r for r in sorted(self.rows.values(), key=lambda r: -r.commit_block)
                if (not status or r.status is status) and (not hotkey or r.hotkey == hotkey) and (not sha256 or r.sha256 == sha256)]  # fmt: skip
        start = int(cursor or 0)
        return Page(items=tuple(self.placed(rows[start : start + limit])), next_cursor=str(start + limit) if start + limit < len(rows) else None)

    async def submission(self, id_):
        await trio.lowlevel.checkpoint()
        row = self.rows.get(id_)
        if row is None:
            return None
        detail = self.details.get(id_) or SubmissionDetail(submission=row, transitions=transitions(row))
        return msgspec.structs.replace(detail, submission=self.placed([row])[0])

    async def in_state(self, *statuses):
        await trio.lowlevel.checkpoint()
        return self.placed(sorted((r for r in self.rows.values() if r.status in statuses), key=lambda r: (r.commit_block, r.uid or 0)))

    async def source(self, id_):
        await trio.lowlevel.checkpoint()
        return self.sources.get(id_)

    async def runs(self, id_):
        await trio.lowlevel.checkpoint()
        return self.run_rows.get(id_, ())

    async def scored(self):
        await trio.lowlevel.checkpoint()
        self.calls.append("scored")
        return sorted((r for r in self.rows.values() if r.status is Status.SCORED), key=lambda r: r.commit_block)

    async def counts(self):
        await trio.lowlevel.checkpoint()
        found = {}
        for row in self.rows.values():
            found[row.status.value] = found.get(row.status.value, 0) + 1
        return found

    async def weights(self):
        await trio.lowlevel.checkpoint()
        return self.view

    async def events_since(self, seq, limit=1000):
        await trio.lowlevel.checkpoint()
        return [e for e in self.events[max(seq, self.first_kept) :] if e.seq > seq][:limit]

    @contextlib.contextmanager
    def subscribe(self, buffer):
        send, receive = trio.open_memory_channel(buffer)
        self.subscribers.append(send)
        try:
            yield receive
        finally:
            if send in self.subscribers:
                self.subscribers.remove(send)
            send.close()
            receive.close()


def transitions(row):
    """The way of a submission to where it is."""
    way = [Status.SEALED, Status.REVEALED, Status.FETCHED, Status.CHECKED, Status.QUEUED, Status.RUNNING]
    if row.status in way:
        way = way[: way.index(row.status) + 1]
    elif row.reason is not None and row.reason.stage is Stage.CHECK:
        way = [*way[:3], row.status]
    else:
        way = [*way, row.status]
    spans = [0, 240, 243, 243.4, 243.5, 260, 312]
    return tuple(Transition(status=status, at=row.created_at + spans[i], block=row.commit_block + (0, 20, 21, 21, 21, 22, 27)[i], reason=row.reason if i == len(way) - 1 else None)
                 for i, status in enumerate(way))  # fmt: skip


def verdict_of(row, n=0):
    outcome = row.verdict
    mfu = row.score_mfu or 47.0
    worst = 5.1 if row.reason is not None and row.reason.code == 1401 else 0.4
    runs = tuple(run(i, mfu + 0.05 * math.sin(7 * i + n) - (9 if i == 0 else 0), worst if i else 0.4, seed=10 * n) for i in range(1 if worst > 1 else 6))
    if worst > 1:
        runs = (*runs, run(1, mfu, worst, seed=10 * n))
    if row.reason is not None and row.reason.stage is Stage.CHECK:
        runs = ()
    reason = {} if row.reason is None else {k: getattr(row.reason, k) for k in ("code", "rule", "stage", "message", "measured", "limit", "line", "hint")}
    return Verdict(verdict=outcome, **reason, score_mfu=row.score_mfu, runs=runs, device="NVIDIA H100 80GB HBM3", peak_tflops=989.5, peak_source="table", model="qwen2.5-3b",
                   profile="qwen2.5-3b", rules_version=row.rules_version, environment={"torch": "2.11.0", "driver": "580.65", "source": row.sha256[:16]},
                   output_tail="SECRET-OUTPUT-OF-A-SUBMISSION")  # fmt: skip


def simple_rank(scored):
    """Enough of `crusades.scoring` to have something to show: the best of each hotkey leads when it is 0.5 % better."""
    best, leader, history = {}, None, []
    for row in scored:
        took = leader is None or row.score_mfu > leader.score_mfu * 1.005
        leader = row if took else leader
        history.append(HistoryPoint(at=row.updated_at, block=row.commit_block, submission_id=row.id, hotkey=row.hotkey, score_mfu=row.score_mfu, leader_mfu=leader.score_mfu, took_lead=took))
        if row.hotkey not in best or row.score_mfu > best[row.hotkey].score_mfu:
            best[row.hotkey] = row
    order = sorted(best.values(), key=lambda r: (r is not leader, -r.score_mfu))
    rows = tuple(Standing(rank=i, submission_id=r.id, hotkey=r.hotkey, uid=r.uid, score_mfu=r.score_mfu, commit_block=r.commit_block, weight=1.0 if i == 1 else 0.0,
                          why=f"leads since block {r.commit_block}" if i == 1 else f"{max(0.0, 100 * (1 - r.score_mfu / leader.score_mfu)):.2f} % behind the leader; needs 0.5 % more")
                 for i, r in enumerate(order, 1))  # fmt: skip
    return SimpleNamespace(rows=rows, history=tuple(history), leader=leader)


def filled_store():
    """A day of a competition: 40 submissions in every state."""
    store = FakeStore()
    rng = random.Random(4)
    climb = 41.0
    for n in range(34):
        if n % 7 == 3:
            row = submission(n, Status.REJECTED, reason=AUDIT_REASON)
        elif n % 11 == 5:
            row = submission(n, Status.REJECTED, reason=RULE_REASON)
        elif n == 20:
            row = submission(n, Status.REJECTED, reason=COPY_REASON)
        elif n == 28:
            row = submission(n, Status.FAULTED, reason=FAULT_REASON, attempts=3)
        else:
            climb += rng.choice([0, 0.1, 0.9, 1.6]) * (58 - climb) / 10
            row = submission(n, Status.SCORED, mfu=round(climb - rng.choice([0, 0, 0.4, 2.2, 4.1]), 3))
        store.judge(row, verdict_of(row, n))
        store.sources[row.id] = Source(sha256=row.sha256, content=CODE.encode(), url=row.url, fetched_at=row.created_at + 243)
    store.change(submission(34, Status.RUNNING))
    store.run_rows[submission_id(34)] = (run(0, 44.0), run(1, 55.1))
    for n, status in ((35, Status.QUEUED), (36, Status.QUEUED), (37, Status.FETCHED), (38, Status.SEALED), (39, Status.SEALED)):
        store.change(submission(n, status, provisional=status is Status.SEALED))
    store.sources[submission_id(35)] = Source(sha256="0" * 64, content=b"# SECRET-CODE-OF-A-WAITING-SUBMISSION", url="", fetched_at=NOW)
    store.set_weights(WeightsView(asked={12: 0.95, 0: 0.05}, on_chain={12: 0.9499, 0: 0.0501}, asked_at=NOW - 700, asked_block=5_001_900, applied_block=5_001_903, equal=True))
    return store


def filled_board(**more):
    board = Board(network="finney", netuid=3, hotkey=hotkey(99), uid=7, profile="qwen2.5-3b", model="Qwen2.5-3B, bf16", rules_version="1+0badcafe", started_at=NOW - 400_000,
                  block=5_001_962, finalized_block=5_001_959)  # fmt: skip
    board.slots = {
        "cuda:0": SlotView(name="cuda:0", device="NVIDIA H100 80GB HBM3", state="running", submission_id=submission_id(34), since=NOW - 31),
        "cuda:1": SlotView(name="cuda:1", device="NVIDIA H100 80GB HBM3", state="warming", detail="preparing exam 4 of 12", since=NOW - 12),
    }
    board.progress = {submission_id(34): "run 2 of 5"}
    board.ready = {"store": "ready", "chain": "ready", "slot cuda:0": "ready", "slot cuda:1": "ready"}
    for name, value in more.items():
        setattr(board, name, value)
    return board


RULES_DOCUMENT = {"rules_version": "1+0badcafe", "profile": "qwen2.5-3b", "rules": [{"id": "R104", "title": "no ctypes", "why": "it reaches any memory", "instead": "use torch"}], "workload": {}}
