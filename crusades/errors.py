"""Every exception we raise, named by whose action causes it.

A submission's failure is never an exception: it is a `records.Reason` inside a `records.Verdict`. What is here stops
or delays *us*. Modules translate the errors of their libraries into these once, at their edge; anything else is a bug
and leaves the process with a traceback.
"""


class CrusadesError(Exception):
    """Base of everything we raise on purpose. The message is for a person and says what to do.

    `exit_code` is what a command returns when nothing closer to the user has handled it.
    """

    exit_code = 3


class ConfigError(CrusadesError):
    """The operator's input (flags, `hparams.toml`, wallet, environment) is wrong. Nothing has been started."""

    exit_code = 2


class UsageError(CrusadesError):
    """A command was called in a way that cannot work (no such file, contradicting flags)."""

    exit_code = 2


class MustNotRestart(CrusadesError):
    """Going on could do harm (another process signs with this hotkey): a person must look first.

    systemd's RestartPreventExitStatus names this exit code.
    """

    exit_code = 3


class StoreError(CrusadesError):
    """The database refused, is corrupt, or is newer than this program."""


class StateLocked(StoreError):
    """Another process holds the state directory."""


class ChainError(CrusadesError):
    """The chain or the way to it failed (node down, deadline passed, call refused). Retried by the caller's policy."""


class ChainIncompatible(ChainError):
    """The chain runs a runtime that lacks something we use. Weights are held until this is cleared."""


class OutcomeUnknown(ChainError):
    """An extrinsic was sent and nobody can say whether it was included: read the chain before sending again."""


class FetchFault(CrusadesError):
    """A submission's host could not be asked (DNS, connection, 5xx). The outside's fault: retried in a grace window."""


class SandboxFault(CrusadesError):
    """We could not build or keep up the sandbox. Ours, never charged to a miner."""


class RefereeFault(CrusadesError):
    """The referee died, hung or broke protocol. Ours, never charged to a miner."""


class EnvironmentFault(RefereeFault):
    """The referee cannot work because model, data or cache are missing or damaged, or the settings do not fit this machine: it says
    what a person has to do. Ours, never charged to a miner."""


class DeviceFault(CrusadesError):
    """The card failed (ECC, Xid, lost from the bus, foreign process). Ours or the hardware's."""


class ProtocolError(CrusadesError):
    """A frame on a pipe is malformed. Its meaning depends on who sent it: see `bench.protocol`."""
