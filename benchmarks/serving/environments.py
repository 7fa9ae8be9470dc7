"""An environment for each framework: its own packages, pinned, and those of this environment behind them.

What a framework needs is installed into a virtual environment of its own; what it doesn't bring (PyTorch above all) is
taken from the environment that this program runs in.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).with_name("requirements")


class NotInstallableError(Exception):
    """A framework's packages cannot be had here; its message is one line that says why."""


def python_of(framework: str) -> Path:
    """Return the interpreter of a framework's environment, set up if need be; this one where it has no requirements.

    Raises `NotInstallableError`.
    """
    requirements = REQUIREMENTS / f"{framework}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    folder = ENVIRONMENTS / framework
    python, installed = folder / "bin/python", folder / "installed.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing {framework} …", file=sys.stderr, flush=True)
        _install(framework, folder, requirements)
        installed.write_text(wanted, encoding="utf-8")
    return python


def version_of(framework: str, package: str) -> str:
    """Return the version of `package` that a framework's requirements pin."""
    for line in (REQUIREMENTS / f"{framework}.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version
    raise ValueError(f"the requirements of {framework} don't name {package}")


def _install(framework: str, folder: Path, requirements: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(framework, sys.executable, "-m", "venv", str(folder))
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    # Each file names all that its framework needs, so that nothing else is looked for.
    pip = (str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--quiet")
    _run(framework, *pip, "--requirement", str(requirements))


def _run(framework: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this project's own
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstallableError(f"{framework}: {(errors or done.stderr.splitlines() or ['no reason given'])[0]}")
