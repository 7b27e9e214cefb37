"""What ships in `deploy/`: the unit, the dashboard and the alerts agree with the program, and systemd accepts the unit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crusades import install
from crusades.errors import ConfigError
from crusades.metrics import Metrics
from crusades.nvml import Sample
from crusades.validator import BAD_CONFIG, STAY_DOWN

DEPLOY = Path(__file__).parent.parent / "deploy"
PROMQL_WORDS = {"sum", "by", "without", "rate", "increase", "histogram_quantile", "absent", "and", "label_values", "instance", "le"}


def metric_names():
    metrics = Metrics()
    metrics.show_card("cuda:0", Sample(at=0.0, sm_clock_mhz=1, power_watts=1.0, temperature_celsius=1))
    return {re.split(r"[ {]", line)[0] for line in metrics.render().decode().splitlines() if not line.startswith("#")} | {
        line.split()[2] + suffix for line in metrics.render().decode().splitlines() if line.startswith("# TYPE")
        for suffix in (("_bucket",) if line.endswith("histogram") else ("",))}  # fmt: skip


def used_names(query):
    bare = re.sub(r'\{[^}]*\}|"[^"]*"|\[[^\]]*\]|\b(?:by|without) \([^)]*\)', "", query)
    return {word for word in re.findall(r"[a-z][a-z0-9_]+", bare) if word not in PROMQL_WORDS}


def dashboard_queries():
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def alert_queries():
    return re.findall(r"^\s+expr: (.+)$", (DEPLOY / "alerts.yml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("query", dashboard_queries() + alert_queries())
def test_every_query_names_an_existing_metric(query):
    assert used_names(query)
    assert used_names(query) <= metric_names()


def test_every_metric_of_ours_is_on_the_dashboard():
    shown = set().union(*map(used_names, dashboard_queries()))
    ours = {name for name in metric_names() if name.startswith("crusades_") and not name.endswith(("_created", "_sum", "_count"))}
    assert ours - shown - {"crusades_evaluation_seconds"} == set()


def test_panels_do_not_overlap_and_have_unique_numbers():
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    cells = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(set(cells)) == len(cells)
    assert len({p["id"] for p in panels}) == len(panels)


# ------------------------------------------------------------------------------------------------ the unit


def rendered():
    return install.render("/usr/bin/python3", groups="video")


def directives(text):
    return [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#")]


def test_every_line_of_the_unit_has_its_reason():
    """A directive stands below a comment, or below another directive of the same group."""
    explained = False
    for line in install.template().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line.strip() or line.startswith("["):
            explained = line in ("[Unit]", "[Install]")
        else:
            assert explained, line


def test_the_unit_stays_down_for_exactly_our_exit_codes():
    assert dict(directives(rendered()))["RestartPreventExitStatus"].split() == [str(BAD_CONFIG), str(STAY_DOWN)]


def test_a_shutdown_that_hangs_says_where_before_systemd_kills_it():
    from crusades.daemon import LAST_RESORT
    from crusades.hparams import Daemon

    assert float(dict(directives(rendered()))["TimeoutStopSec"]) > Daemon().shutdown_grace + LAST_RESORT + 5


def test_nothing_is_switched_on_that_would_break_sandboxes_or_cards():
    values = dict(directives(rendered()))
    for name in ("RestrictNamespaces", "PrivateDevices", "PrivateUsers", "MemoryDenyWriteExecute", "ProtectKernelTunables", "ProtectKernelLogs",
                 "ProcSubset", "ProtectProc", "ProtectControlGroups", "ProtectHostname"):  # fmt: skip
        assert name not in values
        assert name in install.template()


def systemd_analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("this machine has no systemd-analyze (apt-get install systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def complaints(folder, text):
    """What systemd says of a unit. The text is taken as it is: users and groups need not exist on this machine."""
    unit = folder / install.UNIT
    unit.write_text(text)
    version = int(systemd_analyze("--version").stdout.split()[1])
    done = systemd_analyze("verify", "--man=no", *(["--recursive-errors=no"] if version >= 250 else []), str(unit))
    return [line for line in done.stderr.splitlines() if install.UNIT in line]


def test_systemd_accepts_every_line(tmp_path):
    assert complaints(tmp_path, install.render("/bin/sh", groups="video")) == []


@pytest.mark.parametrize(("line", "spoilt"), [("RestartSec=10", "RestartSecs=10"), ("TimeoutStopSec=90", "TimeoutStopSec=soon"), ("User=crusades", "User=nobody"),
                                              ("Delegate=cpu memory pids", "Delegate=cpu memories")])
def test_systemd_would_have_said_so(tmp_path, line, spoilt):
    """The test above can fail: a misspelt key, a wrong value, the one user that systemd warns of."""
    text = install.render("/bin/sh")
    assert line in text
    assert complaints(tmp_path, text.replace(line, spoilt))


def test_the_exposure_that_systemd_computes_is_moderate_at_most(tmp_path):
    unit = tmp_path / install.UNIT
    unit.write_text(rendered())
    done = systemd_analyze("security", "--offline=true", "--threshold=50", str(unit))
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout.splitlines()[-1]


# ------------------------------------------------------------------------------------------------ install-service


def test_a_dry_run_says_everything_and_does_nothing(tmp_path, capsys):
    assert install.run_install(dry_run=True, python="/usr/bin/python3", config=tmp_path / "etc", units=tmp_path / "units") == 0
    said = capsys.readouterr().out
    for word in ("system user crusades", "ExecStart=/usr/bin/python3 -m crusades.validator", "LoadCredential=hotkey:", "daemon-reload", "--netuid", "never the coldkey"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_person_are_never_overwritten(tmp_path):
    (tmp_path / "validator.env").write_text("CRUSADES_ARGS=--netuid 7\n")
    assert not [step for step in install.steps("/usr/bin/python3", config=tmp_path, units=tmp_path) if step.path == tmp_path / "validator.env"]


def test_a_path_that_systemd_would_split_is_refused():
    with pytest.raises(ConfigError, match="misread"):
        install.render("/srv/my python/bin/python3")


def test_an_interpreter_in_a_home_is_named():
    assert install.hidden_by_the_unit("/home/me/venv/bin/python") == "/home"


def test_files_are_replaced_whole(tmp_path):
    unit = tmp_path / install.UNIT
    unit.write_text("old")
    install._do(install.Step("", path=unit, content="new"))
    assert unit.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == [install.UNIT]


def test_the_operators_guide_names_only_metrics_that_exist():
    text = (DEPLOY.parent / "docs" / "operating.md").read_text()
    assert set(re.findall(r"\bcrusades_[a-z_]+", text)) <= metric_names()


# ------------------------------------------------------------------------------------------------ the delegated group, for real

LEAF_MOVE = """
import os, subprocess, sys
from pathlib import Path
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
unit = root / f"crusades-test-{os.getpid()}"
unit.mkdir()
(unit / "cgroup.procs").write_text(str(os.getpid()))
from crusades.sandbox.cgroups import enter_leaf
controllers = (root / "cgroup.controllers").read_text().split()
enabled = (root / "cgroup.subtree_control").read_text().split()
for name in controllers:
    (root / "cgroup.subtree_control").write_text(f"+{name}")

def hands_down():
    try:
        for name in controllers:
            (unit / "cgroup.subtree_control").write_text(f"+{name}")
    except OSError as error:
        return error.strerror
    return "yes"

before = hands_down()
enter_leaf(root)
print(before, "|", hands_down(), "|", Path("/proc/self/cgroup").read_text().splitlines()[-1], "|", len(controllers), "|", (unit / "cgroup.procs").read_text().split())
(root / "cgroup.procs").write_text(str(os.getpid()))
for folder in [*unit.glob("*/"), unit]:
    if folder.is_dir():
        folder.rmdir()
for name in controllers:
    if name not in enabled:
        (root / "cgroup.subtree_control").write_text(f"-{name}")
"""


def test_the_daemon_moves_into_a_leaf_so_that_its_group_may_hand_controllers_down(tmp_path):
    """The kernel's own rule, on a real version 2 hierarchy: a group with processes in it hands nothing down."""
    done = subprocess.run(["unshare", "--mount", sys.executable, "-c", LEAF_MOVE, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(DEPLOY.parent)})
    if done.returncode:
        pytest.skip(f"no version 2 hierarchy can be mounted here: {done.stderr.strip().splitlines()[-1]}")
    before, after, group, controllers, left = (part.strip() for part in done.stdout.split("|"))
    if controllers == "0":
        pytest.skip("version 1 holds all controllers of this machine")
    assert before == "Device or resource busy"
    assert after == "yes"
    assert group.endswith("/daemon")
    assert left == "[]"
