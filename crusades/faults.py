"""The fault table: whose fault, what happens next. One place for code, API, TUI and docs (design.md §5).

`1xxx` the submission's: terminal. `2xxx` the validator's: re-queued in front, bounded attempts, then `faulted`, never
charged to the miner. `3xxx` the outside's: retried with backoff inside a grace window. A code is never reused for
another meaning; retired codes stay in the table.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Whose(StrEnum):
    """Who has to act."""

    SUBMISSION = "submission"
    VALIDATOR = "validator"
    OUTSIDE = "outside"


class Fault(msgspec.Struct, frozen=True):
    """One row of the table."""

    code: int
    name: str
    title: str
    """What happened, in words a miner or an operator reads."""
    advice: str
    """What to do about it."""

    @property
    def whose(self) -> Whose:
        """Who pays, from the thousands digit."""
        return {1: Whose.SUBMISSION, 2: Whose.VALIDATOR, 3: Whose.OUTSIDE}[self.code // 1000]

    @property
    def terminal(self) -> bool:
        """A submission's own failure is final; everything else is tried again."""
        return self.whose is Whose.SUBMISSION


_ROWS: tuple[Fault, ...] = (
    # --- 10xx: what is on chain
    Fault(1001, "payload-malformed", "the commitment is not a submission of this competition", "commit with `crusades submit URL`"),
    Fault(1002, "reveal-failed", "the chain could not decrypt the timelocked commitment", "submit again; `crusades submit` seals for a round the chain can open"),
    Fault(1003, "overwritten", "a newer commitment replaced this one before it was revealed", "wait for a reveal before you commit again"),
    Fault(1004, "too-soon", "the hotkey committed again before the competition's minimum interval had passed", "`crusades submit` shows when the next commit counts"),
    Fault(1005, "copy", "the same program was committed earlier by another submission", "submit work of your own; the reason names the original"),
    Fault(1006, "not-registered", "the hotkey was not registered on the subnet when the commitment was read", "register the hotkey, then submit"),
    Fault(1007, "fee-missing", "the commitment names no valid fee receipt", "`crusades submit` pays the fee and names it"),
    Fault(1008, "withdrawn", "the block that held the commitment was not finalised", "submit again if the chain lost your commitment"),
    # --- 11xx: the file
    Fault(1101, "url-refused", "the URL is not one that a validator may open", "host the raw file on a public https address"),
    Fault(1102, "not-found", "the host answered that the file is not there", "check that the raw URL opens without a login"),
    Fault(1103, "too-large", "the file is larger than the rules allow", "keep train.py under the size in the rules"),
    Fault(1104, "hash-mismatch", "the file at the URL is not the file that was committed", "do not edit the file after `crusades submit`; commit the new version"),
    Fault(1105, "not-source", "the URL serves something that is not Python source", "host the raw file, not the page that shows it"),
    Fault(1106, "unreachable", "the host stayed unreachable for the whole grace window", "use a host that stays up, then submit again"),
    # --- 12xx: the rules
    Fault(1201, "rule", "the file breaks a rule of the competition", "`crusades check train.py` prints every finding with what to do instead"),
    Fault(1202, "no-inner-steps", "the file defines no function inner_steps", "define inner_steps(model, data_iterator, optimizer, num_steps, device)"),
    Fault(1203, "syntax", "the file is not valid Python", "run `python -m py_compile train.py`"),
    # --- 13xx: it ran and failed
    Fault(1301, "load-failed", "the file raised while it was being loaded", "run `crusades bench train.py` and read the traceback"),
    Fault(1302, "raised", "inner_steps raised", "run `crusades bench train.py` and read the traceback"),
    Fault(1303, "exited", "the process ended before the run was over", "inner_steps must return; it may not exit"),
    Fault(1304, "timeout", "the run did not end within its deadline", "`hparams.toml` holds the deadlines of load, warm-up and run"),
    Fault(1305, "out-of-memory", "the submission used more memory than it is guaranteed", "`crusades bench` prints the peak; stay under the limit in hparams.toml"),
    Fault(1306, "bad-frame", "the process sent something that is not part of the protocol", "do not write to file descriptors that you did not open"),
    Fault(1307, "bad-result", "inner_steps returned something that is not an InnerStepsResult", "return final_logits, total_tokens and final_loss"),
    Fault(1308, "broke-device", "the submission left the card in an error state", "run `crusades bench` under compute-sanitizer"),
    Fault(1309, "wrong-step-count", "inner_steps did not ask for exactly one batch per step", "call next(data_iterator) once per step"),
    # --- 14xx: it ran and did not train
    Fault(1401, "audit", "the work that the score claims was not all done", "the measured statistic and its limit are in the reason; `crusades bench` shows all of them"),
    Fault(1402, "not-finite", "weights, moments or results hold NaN or infinity", "check the loss scale and the reductions"),
    Fault(1403, "optimizer", "weights and moments do not follow from each other by AdamW", "use the optimizer that is passed in, as it is"),
    Fault(1404, "result-mismatch", "final_loss, final_logits or total_tokens differ from the reference", "return the values of the last step"),
    # --- 2xxx: ours
    Fault(2001, "sandbox", "the sandbox could not be built or kept up", "`crusades doctor` names the wall that is down"),
    Fault(2002, "referee", "the referee failed", "see the log of the slot; the daemon restarts the referee"),
    Fault(2003, "device", "the card failed or was used by another process", "see `nvidia-smi -q` and the slot page"),
    Fault(2004, "disk", "the validator's disk failed or is full", "free space in the state directory"),
    Fault(2005, "interrupted", "the validator stopped during the evaluation", "nothing: it goes on after a restart"),
    Fault(2006, "environment", "model, data or cache are missing or damaged, or the settings do not fit this machine",
          "do what the message says; `crusades setup --profile NAME` fetches what is missing, with `--verify` also what has changed"),
    # --- 3xxx: the outside's
    Fault(3001, "host-down", "the host of the URL could not be asked", "tried again until the grace window ends"),
    Fault(3002, "chain-down", "the chain could not be asked", "tried again; add fallback endpoints"),
    Fault(3003, "wallet", "the wallet could not be used", "check the wallet's path, name and password"),
)

FAULTS: dict[int, Fault] = {row.code: row for row in _ROWS}
BY_NAME: dict[str, Fault] = {row.name: row for row in _ROWS}
assert len(FAULTS) == len(_ROWS) == len(BY_NAME), "a code or name stands twice in the fault table"


def fault(name: str) -> Fault:
    """The row called `name`. KeyError is a bug in the caller."""
    return BY_NAME[name]


# ------------------------------------------------------------------------------------------------ for people

_GROUPS = {
    1: ("The submission's", "Final. The reason names stage, rule, line, measured value and limit where there are any."),
    2: ("The validator's", "Tried again in front of the queue, `daemon.max_attempts` times in all with doubled delays, then `faulted`; never charged to the miner."),
    3: ("The outside's", "Tried again with doubled delays; a host that cannot be asked gets `fetch.grace_hours` before that is final."),
}


def as_markdown() -> str:
    """`docs/faults.md`; `python -m crusades.faults` prints it and a test compares."""
    lines = ["# Faults", "", "Whose fault, and what happens next: the codes of every reason, in the API, the TUI, the log and the metrics. Printed by",
             "`python -m crusades.faults` from the table that the program itself uses.", ""]
    for group, (title, what) in _GROUPS.items():
        lines += [f"## {group}xxx: {title}", "", what, "", "| code | name | what happened | what to do |", "|---|---|---|---|"]
        lines += [f"| {row.code} | `{row.name}` | {row.title} | {row.advice} |" for row in _ROWS if row.code // 1000 == group]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
