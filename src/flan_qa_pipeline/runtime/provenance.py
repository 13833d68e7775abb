"""The versions of packages and the commit of the code that a run is made with."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flan_qa_pipeline

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "kedro",
    "kedro-datasets",
    "numpy",
    "pandas",
    "pyarrow",
)


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and all packages that can change a training."""
    own = {"python": platform.python_version(), "flan_qa_pipeline": flan_qa_pipeline.__version__}
    return own | {name: version(name) for name in PACKAGES}


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Return a folder's commit, and whether its files differ from it; None outside git."""
    try:
        head, changes = (
            subprocess.run(  # noqa: S603
                ["git", "--no-optional-locks", "-C", str(folder), *command],  # noqa: S607
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": head, "dirty": bool(changes)}
