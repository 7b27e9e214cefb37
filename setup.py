"""Everything about the package is in pyproject.toml, but this: a wheel carries what stands beside the package in a checkout,
because the validator's control run, `crusades demo`, `init` and `install-service` need it. `crusades.places` finds both."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("hparams.toml", "examples", "deploy", "docs")


class WithShipped(build_py):
    """`build_py`, and then the files."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout has them already
        for name in SHIPPED:
            source, target = Path(name), Path(self.build_lib, "crusades", "shipped", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)


setup(cmdclass={"build_py": WithShipped})
