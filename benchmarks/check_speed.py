"""How long `crusades check` takes, on 20 kB and on 500 kB of ordinary code: `python benchmarks/check_speed.py`.

Budgets (docs/design.md §8): 0.3 s and 2 s for the whole command, the start of the interpreter included.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = ((20_000, 0.3), (500_000, 2.0))
REPEATS = 5


def source_of(size: int) -> str:
    """Real code of about `size` bytes: the examples, one after the other."""
    texts = [path.read_text() for path in sorted((ROOT / "examples").glob("*.py"))]
    made, position = "", 0
    while len(made.encode()) + len(texts[position % len(texts)].encode()) <= size:
        made += texts[position % len(texts)]
        position += 1
    return made


def command_seconds(path: Path) -> tuple[float, float]:
    """One run of the command: wall clock and CPU seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = "import sys; from crusades.cli import main; sys.exit(main(['check', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stderr.decode()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print size, best and median time, and the budget."""
    sys.path.insert(0, str(ROOT))
    from crusades.rules import scan

    with tempfile.TemporaryDirectory() as folder:
        for size, budget in BUDGETS:
            path = Path(folder) / "train.py"
            path.write_text(source_of(size))
            times = sorted(command_seconds(path) for _ in range(REPEATS))
            started = time.perf_counter()
            findings = scan(path.read_bytes())
            alone = time.perf_counter() - started
            walls, busy = [wall for wall, _ in times], min(cpu for _, cpu in times)
            print(
                f"{path.stat().st_size:>7,} bytes: command best {walls[0]:.3f} s, median {walls[REPEATS // 2]:.3f} s, CPU {busy:.3f} s (budget {budget} s); "
                f"scan alone {alone:.3f} s, {len(findings)} findings"
            )


if __name__ == "__main__":
    main()
