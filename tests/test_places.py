"""What ships beside the package is found from a checkout and from an installed wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from crusades import places

ROOT = Path(__file__).parent.parent
WANTED = ("hparams.toml", "examples", "deploy", "docs")


@pytest.mark.parametrize("name", WANTED)
def test_a_checkout_has_it_beside_the_package(name):
    assert places.shipped(name) == ROOT / name
    assert places.shipped(name).exists()


@pytest.mark.slow
def test_a_wheel_has_everything_that_the_programs_read(tmp_path):
    """Built from a copy, so that nothing is written into the checkout; unpacked, it finds its own files and not the checkout's."""
    pytest.importorskip("setuptools", reason="without setuptools no wheel can be built here")
    source = tmp_path / "source"
    source.mkdir()
    for name in (*WANTED, "crusades", "README.md", "pyproject.toml", "setup.py", "MANIFEST.in"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index",
                    "--wheel-dir", tmp_path, source], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    site = tmp_path / "site" / "crusades"
    missing = [str(path.relative_to(ROOT)) for name in WANTED for path in sorted([ROOT / name, *(ROOT / name).rglob("*")])
               if path.is_file() and "__pycache__" not in path.parts and not (site / "shipped" / path.relative_to(ROOT)).is_file()]
    missing += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "crusades").rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts and not (site / path.relative_to(ROOT / "crusades")).is_file()]
    assert not missing
    told = subprocess.run([sys.executable, "-c", "from crusades import hparams, install, validator; print(len(hparams.load().profiles), len(install.template()), validator._baseline().url)"],
                          env={"PYTHONPATH": str(site.parent)}, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120).stdout
    assert str(site / "shipped" / "examples" / "baseline.py") in told
