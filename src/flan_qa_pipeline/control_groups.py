"""The CPU time and the memory that Linux's control groups leave to this process.

A container limits both by such groups.

This module imports only the standard library.

Files: https://docs.kernel.org/admin-guide/cgroup-v2.html and, of the first version,
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class _Group(NamedTuple):
    folder: Path
    is_v2: bool


def cpu_quotas(root: Path = ROOT) -> Iterator[float]:
    """Yield the quotas of CPU time, in cores, of this process's control groups and their parents.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    for folder, is_v2 in _groups("cpu", root):
        if is_v2:
            quota, period = [*text_or_empty(folder / "cpu.max").split(), "", ""][:2]
        else:
            quota, period = (
                text_or_empty(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
            )
        if quota.isdigit() and period.isdigit() and int(period):  # not "max" or -1
            yield int(quota) / int(period)


def free_bytes(root: Path = ROOT) -> Iterator[int]:
    """Yield the bytes that each limited group, and each of its parents, has left.

    Cached pages of files count as left, since the kernel gives them up.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    for folder, is_v2 in _groups("memory", root):
        names = ("max", "current") if is_v2 else ("limit_in_bytes", "usage_in_bytes")
        limit, usage = (text_or_empty(folder / f"memory.{name}").strip() for name in names)
        if limit.isdigit() and usage.isdigit():
            lines = text_or_empty(folder / "memory.stat").splitlines()
            sizes = dict(line.partition(" ")[::2] for line in lines)
            prefix = "" if is_v2 else "total_"
            cached = sum(
                int(sizes.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive")
            )
            yield max(0, int(limit) - int(usage) + cached)


def text_or_empty(path: Path) -> str:
    """Return a file's text, or an empty one where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    mounts = root / "sys/fs/cgroup"
    for line in text_or_empty(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            for folder in _with_parents([mounts, mounts / "unified"], group):
                yield _Group(folder, True)
        elif controller in controllers.split(","):
            for folder in _with_parents([mounts / controllers, mounts / controller], group):
                yield _Group(folder, False)


def _with_parents(mounts: list[Path], group: str) -> Iterator[Path]:
    """Yield a group's folder and those above it; a container sees its own group as the mount."""
    parts = Path(group.lstrip("/")).parts
    for mount in dict.fromkeys(mounts):
        for length in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:length])
