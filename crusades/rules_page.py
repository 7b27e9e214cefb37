"""The rules page: `docs/rules.md` from the table and the lists. A test keeps the file in step."""

from __future__ import annotations

from collections.abc import Iterator

from crusades import faults
from crusades import rules_lists as lists
from crusades.rules_table import RULES, Group, Rule

_HEAD = """\
# Rules

<!-- Made by `python -m crusades.rules > docs/rules.md`; a test compares. Edit crusades/rules_table.py instead. -->

What a `train.py` may not do, why, and what to do instead. `crusades check train.py` finds all of it in one pass and costs
nothing; validators run the same check before they run a file.

**The score does not rest on these rules.** It rests on a judge in another process, with its own clock and its own copy of
the mathematics, that compares every step with the step it should have been. A file that breaks no rule and does not train
is rejected by that audit; a file that got past a rule has gained nothing from it. The rules say what kind of competition
this is, and spare you a rejection after you have committed.

*Enforced by* says who looks: the **scanner** reads the source before it is run (`crusades check`, every validator); the
**import hook** refuses, while the file runs, what comes its way of the same things (imports, builtins, getattr and setattr,
requests to the interpreter), names the rule and the line, and is a guard rail, not a wall. The walls are the sandbox's.

## What is always allowed

- Anything below `if __name__ == "__main__":`. The block is skipped when a validator loads the file, and exempt from every
  rule but those about the text of the file: keep local tests there, with whatever imports they need.
- `torch`, `torch.compile` and the compiler's configuration, Triton kernels, custom `autograd.Function`s, CUDA graphs and
  streams, activation checkpointing, attention kernels, autocast and TF32, hooks, forwards of your own put into the model.
- Reading clocks and printing. `getattr` and `setattr` with a name that is written out, or looped over.
- Lower precision, as far as the audit cannot tell it from honest training: that is measured, not ruled.
"""

_CHAPTERS: dict[Group, str] = {
    Group.IMPORTS: "Modules are listed by what is allowed; the forbidden lists give the better known ones a reason.",
    Group.DYNAMIC: "A file is to be read before it is run. What it does must be written in it.",
    Group.PATCHES: "Your own functions, classes and the model that you are given are yours to change. Nothing else is.",
    Group.SETTINGS: "",
    Group.TRAINING: "",
    Group.TEXT: "These hold for the whole file, main blocks included.",
    Group.CONTRACT: "",
}


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD
    yield "## Allowed modules\n"
    yield _wrapped(sorted(lists.ALLOWED_MODULES))
    yield "\nand their submodules, but for these:\n"
    yield _wrapped(sorted(lists.DENIED_SUBMODULES))
    yield f"\n(`{'`, `'.join(sorted(lists.ALLOWED_SUBMODULES))}` are allowed.) A listed module may not be installed: `crusades bench` shows what is."
    for group in Group:
        yield f"\n## {group.value}\n"
        if _CHAPTERS[group]:
            yield f"{_CHAPTERS[group]}\n"
        for row in RULES:
            if row.group is group:
                yield from _rule(row)
    yield "\n## Codes\n"
    yield "A rejection by a rule carries the code of the fault table:\n"
    for name in sorted({row.fault for row in RULES}):
        fault = faults.fault(name)
        rules = [row.id for row in RULES if row.fault == name]
        yield f"- **{fault.code}** {fault.title}: {', '.join(rules) if len(rules) < 6 else 'all other rules'}"


def _rule(row: Rule) -> Iterator[str]:
    yield f"### {row.id} {row.what}\n"
    yield f"{row.why}\n"
    yield f"*Instead:* {row.instead}\n"
    by = [words for words, on in (("scanner", row.scanner), ("import hook", row.hook)) if on]
    yield f"*Enforced by:* {' and '.join(by)}.\n"
    names = _names(row.id)
    if names:
        yield _wrapped(names) + "\n"


def _names(rule: str) -> list[str]:
    """The names that a rule lists."""
    names = [name for name, its in lists.DENIED_MODULES.items() if its == rule]
    names += [f"{name}()" for name, its in lists.DENIED_BUILTINS.items() if its == rule and not name.startswith("__")]
    names += [f"{top} … {name}" for top, members in lists.DENIED_MEMBERS.items() for name, its in members.items() if its == rule]
    extra = {"R202": lists.INTROSPECTION, "R205": lists.MODULE_VARIABLES, "R303": lists.LAZY_METHODS, "R304": lists.RAW_MEMORY}
    return sorted(names) + sorted(extra.get(rule, ()))


def _wrapped(names: list[str]) -> str:
    lines, line = [], ""
    for name in names:
        piece = f"`{name}`"
        if line and len(line) + len(piece) > 116:
            lines.append(line)
            line = ""
        line += f" {piece}" if line else piece
    return "\n".join([*lines, line])
