"""What holds for every test.

* The home directory is an empty one: the bittensor SDK and torch write caches there, and nobody's wallets are read.
* With CRUSADES_CI set, a skipped sandbox test fails the run, and so does a run without any sandbox test: a wall that
  nobody tested is not a wall.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How fast a machine with other work makes examples is no property of ours.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts threads: spinning ones starve a machine of two cores

skipped_kernel: list[str] = []
passed_kernel: list[str] = []


@pytest.fixture(autouse=True, scope="session")
def empty_home(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(home / "runtime-cache"))
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers each takes a file at a time, for what its tests set up once; those that want the card are one file,
    for there is one card."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/gpu" if nodeid.startswith("tests/gpu/") else super()._split_scope(nodeid)

    return ByFile(config, log)


def pytest_runtest_logreport(report):
    """In the process that collects the reports: there may be several that run tests (pytest -n)."""
    if "kernel" in report.keywords:
        if report.skipped:
            skipped_kernel.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}")
        elif report.when == "call" and report.passed:
            passed_kernel.append(report.nodeid)


def _complaint() -> str:
    if not os.environ.get("CRUSADES_CI"):
        return ""
    if skipped_kernel:
        return "sandbox tests were skipped:\n  " + "\n  ".join(skipped_kernel)
    return "" if passed_kernel else "no sandbox test ran"


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput") and _complaint():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if complaint := _complaint():
        terminalreporter.section("sandbox tests", red=True)
        terminalreporter.line(complaint)
