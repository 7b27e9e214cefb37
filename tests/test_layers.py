"""Imports point one way (docs/design.md §6): the walls between daemon, referee and sandbox are made of what nobody imports."""

import ast
import functools
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "crusades"

DAEMON = ("daemon", "context", "devices", "housekeeping", "intake", "judging", "mishaps", "poller", "watch", "weights", "weights_catch_up", "weights_ours", "weights_proof")
"""The daemon's task tree and its tasks: one component in several files."""

LAYERS = (
    ("vocabulary", ["errors", "records", "faults", "hparams", "hparams_check", "board", "places"]),
    ("pure", ["rules", "rules_*", "scoring", "scoring_*", "rulebook", "payload", "fees", "addresses", "report", "slots", "chain_rows", "chain_records", "chain_weights",
              "chain_needs", "copies", "bench.mfu", "bench.protocol", "sandbox.policy", "sandbox.seccomp"]),
    ("inputs and outputs", ["asyncio_bridge", "store", "store_*", "migrations", "chain", "chain_*", "fetch", "nvml", "logs", "watchdog", "sandbox",
                            "sandbox.*", "devnet", "devnet.*"]),
    ("work", ["submission", "submission_*", "metrics", "alerts", "bench", "bench.*"]),
    ("viewers", ["web", "web_*", "tui", "tui.*"]),
    ("daemon", list(DAEMON)),
    ("entry", ["check", "cli", "cli_*", "status", "validator", "demo", "demo_*", "install"]),
)  # fmt: skip

OPEN = {"vocabulary", "pure", "entry"}
"""Layers whose modules may import each other; in the others only a family may (chain and chain_link, all of sandbox/)."""

SHARED = {"asyncio_bridge", "logs"}
"""Used by others of their own layer: the bridge serves store and chain, and everybody logs."""

TORCH = ("bench.referee", "bench.referee.*", "bench.inside.*", "sandbox.inside.*")
"""Where torch and transformers may be imported."""

STDLIB_AND_TORCH_ONLY = ("bench.inside.*", "sandbox.inside.*")
"""Runs beside a submission: nothing of ours from outside its folder."""


def modules():
    """dotted name without `crusades.` → path"""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def layer(name):
    """Index of the first layer that names the module exactly, else of the first whose pattern fits."""
    exact = [i for i, (_, patterns) in enumerate(LAYERS) if name in patterns]
    fitting = [i for i, (_, patterns) in enumerate(LAYERS) if matches(name, patterns)]
    return (exact or fitting or [None])[0]


def family(name):
    """Modules that make up one component import each other freely: chain and chain_link, everything in sandbox/."""
    return "daemon" if name in DAEMON else name.split(".")[0].split("_")[0]


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def walk(node):
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from walk(child)


@functools.cache
def imports(path):
    """[(imported name, line)]; ours are given relative to `crusades`, also when a function imports them."""
    found = []
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full.removeprefix("crusades.") in MODULES else node.module, node.lineno))
    return found


def ours(path):
    for name, line in imports(path):
        if name.startswith("crusades."):
            yield name.removeprefix("crusades."), line


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_place(name):
    assert layer(name) is not None, f"crusades/{MODULES[name].relative_to(PACKAGE)} is in no layer of tests/test_layers.py: say where it belongs"


@pytest.mark.parametrize("name", [n for n in MODULES if not matches(n, STDLIB_AND_TORCH_ONLY)])
def test_imports_point_down(name):
    for target, line in ours(MODULES[name]):
        if family(target) == family(name) or target in SHARED:
            continue
        beside = layer(target) == layer(name) and LAYERS[layer(name)][0] in OPEN
        assert beside or layer(target) < layer(name), f"{name}:{line} ({LAYERS[layer(name)][0]}) imports {target} ({LAYERS[layer(target)][0]})"


@pytest.mark.parametrize("name", [n for n in MODULES if not matches(n, TORCH)])
def test_torch_is_imported_by_referee_and_contestant_alone(name):
    for target, line in imports(MODULES[name]):
        assert target.split(".")[0] not in ("torch", "transformers"), f"{name}:{line} imports {target}"


@pytest.mark.parametrize("name", [n for n in MODULES if matches(n, STDLIB_AND_TORCH_ONLY)])
def test_what_runs_inside_imports_nothing_of_ours(name):
    for target, line in imports(MODULES[name]):
        assert not target.startswith("crusades"), f"{name}:{line} imports {target}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("bench.referee")])
def test_the_referee_has_no_network_and_no_event_loop(name):
    for target, line in imports(MODULES[name]):
        root = target.split(".")[0]
        assert root not in ("trio", "asyncio", "httpx", "bittensor", "websockets", "requests"), f"{name}:{line} imports {target}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("sandbox")])
def test_the_sandbox_knows_nothing_of_training(name):
    for target, line in ours(MODULES[name]):
        assert not target.startswith("bench"), f"{name}:{line} imports {target}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("tui")])
def test_the_dashboard_knows_records_and_errors_only(name):
    for target, line in ours(MODULES[name]):
        assert target in ("records", "errors") or target.startswith("tui"), f"{name}:{line} imports {target}"


def test_only_entry_points_import_the_daemon():
    for name, path in MODULES.items():
        if any(target == "daemon" for target, _ in ours(path)):
            assert LAYERS[layer(name)][0] == "entry" or family(name) == "daemon", f"{name} imports the daemon"


def test_only_the_chain_adapter_imports_the_sdk():
    for name, path in MODULES.items():
        if family(name) not in ("chain", "devnet"):
            roots = {target.split(".")[0] for target, _ in imports(path)}
            assert "bittensor" not in roots, f"{name} imports the bittensor SDK"
