"""Processes and folders that remain when the launcher of a run in several processes is killed.

This module imports little, so it works before anything else is imported.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LAUNCHER = "FLAN_QA_PIPELINE_LAUNCHER"  # variable that gives the processes their launcher's id
PREFIX = "flan_qa_pipeline_"
LOCK = "launcher.lock"
NOTICED_WITHIN = 1  # seconds
YOUNG = 60  # seconds in which a new folder may not be locked yet


def end_with_launcher() -> None:
    """End this process within `NOTICED_WITHIN` seconds after its launcher ends, even if killed."""
    if LAUNCHER not in os.environ:
        return
    launcher = int(os.environ.pop(LAUNCHER))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(NOTICED_WITHIN)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def launcher_folder() -> Iterator[Path]:
    """Yield a temporary folder; first remove the folders that killed launchers left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = folder / LOCK
        if lock.is_file() and lock.stat().st_mtime < time.time() - YOUNG:
            try:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            except (Timeout, OSError):
                continue  # its launcher lives, or it is another user's
    with tempfile.TemporaryDirectory(prefix=PREFIX) as made, FileLock(Path(made, LOCK)):
        yield Path(made)
