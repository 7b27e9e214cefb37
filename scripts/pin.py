"""Write constraints.txt from the environment that runs this: exact versions of what pyproject.toml needs, and of what that needs.

    .venv/bin/python scripts/pin.py

Local version labels are left out, so that the CPU and the CUDA build of torch both satisfy the pin. Nothing else that
happens to be installed gets in, and no address of any package index.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# Exact versions that the tests pass with. Written by scripts/pin.py; Python 3.11.\n"


def canonical(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for, the tests' and linters' extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["test"], *extras["lint"], "setuptools", "packaging"]
    return [Requirement(name) for name in names]


def closure(waiting: list[Requirement]) -> dict[str, str]:
    """name → version of everything that `waiting` needs, as installed here."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonical(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found = importlib.metadata.distribution(wanted.name)
        versions[key[0]] = found.version.partition("+")[0]
        for text in found.requires or []:
            below = Requirement(text)
            extras = {"", *wanted.extras}
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(below)
    return versions


def main() -> None:
    versions = closure(requirements())
    (ROOT / "constraints.txt").write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    print(f"constraints.txt: {len(versions)} packages")


if __name__ == "__main__":
    main()
