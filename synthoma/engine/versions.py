"""Which code made a number: versions of what decides it, and the commit of a checkout."""

import contextlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import synthoma


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; "commit" where the package runs from a checkout."""
    found = {"synthoma": synthoma.__version__}
    if (made_of := commit(Path(synthoma.__file__).parent)) is not None:
        found["commit"] = made_of
    found["python"] = platform.python_version()
    for name in ("torch", "torchvision", "numpy", "opencv-python-headless"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"machine": platform.machine(), "system": platform.system()}


@cache
def commit(package: Path) -> str | None:
    """The commit that a package's folder is checked out from, with "-dirty" where a tracked file
    was changed; None where its repository, if any, does not track it, or git is not there."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not an environment inside of another's
        return git("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
