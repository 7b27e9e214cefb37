"""What a calibration says to people: what is caught, what is missed and what that is worth, every limit, every variant. Pure."""

from __future__ import annotations

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibration_roc import roc
from crusades.bench.referee.limits import Result
from crusades.hparams_check import UNJUDGED

ESTIMATE = """Work and time are estimates by arithmetic share: the products that a shortcut leaves out over all products of a run (forward, input
gradients and weight gradients count alike; a product in half the precision counts half), as if every product took the same time and
nothing but products took any. Nothing was timed; memory traffic and what a cheat spends on cheating make the real gain smaller.
"""


def _size(value: float | None) -> float:
    return float("inf") if value is None else abs(value)


def _saved(work: float | None) -> str:
    return "–" if work is None else f"{work:.2%} (+{work / (1 - work):.2%})"


def report(origin: str, results: list[Result], limits: dict[str, list[float]], population: list[str]) -> str:
    """The whole report in Markdown. `population`: names of every variant that might have been measured."""
    usable = [r for r in results if not r.error]
    honest = [r for r in usable if r.population == "honest"]
    lines = [f"# Calibration\n\n{origin}\n", *_summary(usable, honest, limits), *_caught(usable, limits), *_policy(usable, limits),
             *roc(usable, limits), *_limits(usable, limits), *_variants(usable, limits)]
    failed = [f"- {r.variant} (exam {r.exam}): {r.error}" for r in results if r.error]
    left_out = [f"- {name}" for name in population if name not in {r.variant for r in results}]
    if failed or left_out:
        lines += ["\n## Not measured\n", *failed, *left_out]
    return "\n".join(lines) + "\n"


def _summary(usable: list[Result], honest: list[Result], limits: dict[str, list[float]]) -> list[str]:
    rejected = [r for r in honest if bounds.caught_by(r, limits)]
    nearest = max(bounds.nearest(r, limits) for r in honest)
    shortcuts = [r for r in usable if r.population == "shortcut"]
    missed = [r for r in shortcuts if not bounds.caught_by(r, limits)]
    worst = max(missed, key=lambda r: r.work, default=None)
    unseen = f" The largest missed: {worst.variant}, {_saved(worst.work)} of a run's arithmetic." if worst else ""
    passes = max((r for r in usable if r.population == "policy" and not bounds.caught_by(r, limits)), key=lambda r: r.work, default=None)
    allowed = f" Not a shortcut by the rules, and passes: {passes.variant}, {_saved(passes.work)}." if passes else ""
    return [f"Honest results: {len(honest)}, rejected: {len(rejected)}; the nearest comes to {nearest:.2f} of a limit. Shortcuts: {len(shortcuts)}, missed: {len(missed)}.{unseen}{allowed}\n"]


def _caught(usable: list[Result], limits: dict[str, list[float]]) -> list[str]:
    lines = ["## What is caught\n", ESTIMATE, "Behind each: the work it leaves out, and in brackets the MFU that it would add.\n",
             "| dimension | choice | caught | smallest caught | largest missed |", "|---|---|---|---|---|"]  # fmt: skip
    for row in bounds.power(usable, limits):
        small, large = (f"{row[which]}: {_saved(row[f'{which}_work'])}" if row[which] else "–" for which in ("smallest_caught", "largest_missed"))
        lines.append(f"| {row['dimension']} | {row['choice'] or '–'} | {row['caught']} of {row['of']} | {small} | {large} |")
    return lines


POLICY = """Products in a lower precision than the weights', where bf16 products are honest: design.md §2.1 leaves them to the rules, so they set no
limit. What passes here is the largest gain that the audit grants.
"""


def _policy(usable: list[Result], limits: dict[str, list[float]]) -> list[str]:
    found = sorted((r for r in usable if r.population == "policy"), key=lambda r: r.work)
    lines = ["\n## A question of policy\n", POLICY, "| variant | work left out (MFU it adds), estimated | of a limit | |", "|---|---|---|---|"]
    lines += [f"| {r.variant} (exam {r.exam}) | {_saved(r.work)} | {bounds.nearest(r, limits):.3g} | {'rejected' if bounds.caught_by(r, limits) else '**passes**'} |" for r in found]
    return lines if found else []


LIMITS = f"""By step; – where honest work and shortcuts overlap and the step is not judged, · where nothing is measured. Expected: how far out
honest work may stand, of {bounds.EXAMS_FOR_A_TAIL} exams or more by the tail of their values (– is unknown, and not judged), of fewer the worst measured.
Results: honest ones and shortcuts that have the statistic.
"""


def _limits(usable: list[Result], limits: dict[str, list[float]]) -> list[str]:
    lines = ["\n## Limits\n", LIMITS, "| statistic | results | worst honest | expected | limits |", "|---|---|---|---|---|"]
    for name, values in limits.items():
        measured = bounds.having(name, usable)
        honest = [r for r in measured if r.population == "honest"]
        steps = range(len(honest[0].statistics[name]))
        dead = {s for s in steps if len(steps) > 1 and not any(r.statistics[name][s] for r in measured) and None not in (r.statistics[name][s] for r in measured)}
        worst = [max(_size(r.statistics[name][s]) for r in honest) for s in steps]
        cells = [_by_step(column, dead) for column in (worst, [bounds.reach(name, s, honest) for s in steps], values)]
        count = f"{len(honest)} + {sum(r.population == 'shortcut' for r in measured)}"
        lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return lines


def _by_step(values: list[float], dead: set[int]) -> str:
    return " ".join("·" if s in dead and len(values) > 1 else "–" if v >= UNJUDGED else f"{v:.3g}" for s, v in enumerate(values))


def _variants(usable: list[Result], limits: dict[str, list[float]]) -> list[str]:
    lines = ["\n## Every variant\n", "| variant | population | work left out | nearest limit | rejected by | gradient error, worst step |", "|---|---|---|---|---|---|"]
    for r in usable:
        caught = ", ".join(name for name, _ in bounds.caught_by(r, limits)[:3]) or "–"
        error = max(_size(v) for v in r.statistics["gradient_error"])
        lines.append(f"| {r.variant} (exam {r.exam}) | {r.population} | {r.work:.2%} | {bounds.nearest(r, limits):.3g} | {caught} | {error:.3g} |")
    return lines
