"""Paths of datasets that keep their files in a local folder."""

from pathlib import PurePosixPath

from kedro.io import DatasetError
from kedro.io.core import get_protocol_and_path


def local_path(filepath: str) -> PurePosixPath:
    """Return the path of a dataset's file or folder on this machine.

    Raises:
        DatasetError: `filepath` is the address of another file system.
    """
    protocol, path = get_protocol_and_path(filepath)
    if protocol != "file":
        raise DatasetError(
            f"{filepath} is on another file system ({protocol}); this dataset keeps its files on "
            "this machine: give a local path, and copy or push what it saved."
        )
    return PurePosixPath(path)
