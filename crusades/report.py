"""Records as text for a terminal: verdicts like a race result. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from crusades.records import Outcome, Run, Standing, Statistic, Submission, Verdict

EXCESS_SHARE = 0.01
"""Share of a run's time from which it is said that the judge's reads had to wait for the submission's work."""


def table(rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Columns wide enough for their longest cell; `right` holds the numbers of the columns that are flushed right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if str(i) in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def closeness(statistic: Statistic) -> float:
    """How much of its limit a judged statistic used; 0 for one that is only reported."""
    if statistic.limit is None:
        return 0.0
    if statistic.value is None:
        return float("inf")
    return statistic.value / statistic.limit if statistic.limit > 0 else (0.0 if statistic.passed else float("inf"))


def _nearest(run: Run) -> str:
    judged = [s for s in run.audit.statistics if s.limit is not None]
    if not judged:
        return "no limits: calibrate"
    worst = max(judged, key=closeness)
    share = closeness(worst)
    return f"{worst.name} {share:.0%} of its limit" if share < 10 else f"{worst.name} {share:,.0f} times its limit"


def runs_text(runs: Sequence[Run]) -> str:
    """A line per run, then the time of each step of the fastest scored run."""
    rows = [["run", "seconds", "MFU %", "tokens/s", "loss", "peak", "nearest limit"]]
    for run in runs:
        peak = f"{run.peak_memory_bytes / 2**30:.1f} GiB" if run.peak_memory_bytes else "–"
        name = f"{run.index}" if run.scored else "warm-up"
        numbers = [f"{run.seconds:.3f}", f"{run.mfu:.2f}", f"{run.tokens_per_second:,.0f}", "–" if run.final_loss is None else f"{run.final_loss:.4f}", peak]
        rows.append([name, *numbers, f"void: {run.void}" if run.void else _nearest(run)])
    text = table(rows, right="12345")
    scored = [run for run in runs if run.scored and run.step_seconds]
    if scored:
        best = min(scored, key=lambda run: run.seconds)
        text += "\nsteps of run " + f"{best.index}: " + "  ".join(f"{1000 * s:.1f} ms" for s in best.step_seconds)
        own = f"its own reads {1000 * best.read_seconds:.1f} ms" + (f", its copies {1000 * best.copy_seconds:.1f} ms" if best.copy_seconds else "")
        text += f"  (the judge has subtracted {own})"
        if best.excess_seconds > EXCESS_SHARE * best.seconds:
            text += f"\nreads and copies took {1000 * best.excess_seconds:.1f} ms more than on an idle device, which is on the clock: was work still queued when the next batch was asked for?"
    return text


def reason_text(verdict: Verdict) -> str:
    """What was wrong, where, by how much, and what to do."""
    where = f", line {verdict.line}" if verdict.line else ""
    lines = [f"{verdict.stage or 'run'}: {verdict.message}{where}"]
    if verdict.measured is not None and verdict.limit is not None:
        lines.append(f"    measured {_number(verdict.measured)}, limit {_number(verdict.limit)}")
    if verdict.hint:
        lines.append(f"    to do: {verdict.hint}")
    return "\n".join(lines)


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def verdict_text(verdict: Verdict) -> str:
    """The whole result of `crusades bench`."""
    parts = []
    if verdict.model:
        peak = f"peak {verdict.peak_tflops:.3g} TFLOPS ({verdict.peak_source})" if verdict.peak_tflops else ""
        parts.append(", ".join(x for x in (verdict.model, f"profile {verdict.profile}", verdict.device, peak) if x))
    if verdict.runs:
        parts.append(runs_text(verdict.runs))
    if verdict.verdict is not Outcome.ACCEPTED and verdict.output_tail.strip():
        parts.append("the last it printed:\n" + "\n".join("    " + line for line in verdict.output_tail.strip().splitlines()[-15:]))
    parts += [f"note: {note}" for note in verdict.notes]
    if verdict.verdict is Outcome.ACCEPTED:
        scored = sum(run.scored and not run.void for run in verdict.runs)
        parts.append(f"ACCEPTED  {verdict.score_mfu or 0.0:.3f} % MFU, the median of {scored} runs")
    else:
        parts.append(f"{verdict.verdict.value.upper()}  [{verdict.code}{' ' + verdict.rule if verdict.rule else ''}] {reason_text(verdict)}")
    return "\n".join(parts)


def submissions_text(items: Sequence[Submission]) -> str:
    """One line per submission, newest first, with the reason below what was rejected or waits."""
    if not items:
        return "no submissions yet"
    lines = []
    for s in items:
        score = f"{s.score_mfu:.3f} % MFU" if s.score_mfu is not None else ""
        place = f"number {s.queue_position} in the queue" if s.queue_position else s.progress
        facts = [s.id, f"{s.status.value:9}", f"block {s.commit_block}", s.hotkey, score, place, s.url]
        lines.append("  ".join(fact for fact in facts if fact))
        if s.reason:
            lines.append(f"    [{s.reason.code}{' ' + s.reason.rule if s.reason.rule else ''}] {s.reason.message}")
            if s.reason.hint:
                lines.append(f"    to do: {s.reason.hint}")
    return "\n".join(lines)


def leaderboard_text(standings: Sequence[Standing], names: dict[str, str]) -> str:
    """Rank, who, score, weight; `names` maps hotkeys to what they are called here."""
    if not standings:
        return "nobody has been scored"
    rows = [["rank", "miner", "MFU %", "weight", ""]]
    rows += [[str(s.rank), names.get(s.hotkey, s.hotkey), f"{s.score_mfu:.3f}", f"{s.weight:.0%}", s.why] for s in standings]
    return table(rows, right="023")
