"""Errors of the processes of a run: how each records its own, and which one ended the run."""

import json
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import click
from kedro.io import DatasetError
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ErrorHandler,
    ProcessFailure,
)

from flan_qa_pipeline.errors import InputError, ProcessFailedError, in_one_line

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torch sets it in each process, to another file
NOTICED_AFTER = 10  # seconds at most, until the launcher notices a killed process


class ErrorRecorder(ErrorHandler):
    """Writes a process's error to the file that its launcher reads.

    The file has torch's layout (`message.message`, `message.extraInfo`) and, in `extraInfo`, the
    fields `type` and `text` of the error, and `is_input`: whether a user can mend it.
    """

    def record_exception(self, e: BaseException) -> None:
        file = os.environ.get(ERROR_FILE)
        if not file:
            return
        is_input = isinstance(e, InputError | DatasetError)
        text = f"{in_one_line(e)}." if isinstance(e, DatasetError) else str(e)
        extra = {
            "py_callstack": "".join(traceback.format_exception(e)),
            "timestamp": str(int(time.time())),
            "type": type(e).__name__,
            "text": text,
            "is_input": is_input,
        }
        recorded = {"message": {"message": f"{type(e).__name__}: {e}", "extraInfo": extra}}
        Path(file).write_text(json.dumps(recorded), encoding="utf-8")


def explained(error: ChildFailedError) -> InputError | ProcessFailedError:
    """Find the process that ended the run; the failures of the others are its consequences.

    When one process fails, torch sends the others SIGTERM and, half a minute later, SIGKILL. When
    one is killed, the others may fail before torch notices.

    Args:
        error: the failures of all processes, as `launch_agent` raises them.
    """

    def when(item: tuple[int, ProcessFailure]) -> tuple[bool, float]:
        code = item[1].exitcode
        return code == -signal.SIGTERM, item[1].timestamp - (NOTICED_AFTER if code < 0 else 0)

    rank, failure = min(error.failures.items(), key=when)
    if failure.exitcode < 0:
        cause = f"was ended by {failure.signal_name()}"
        if failure.exitcode == -signal.SIGKILL:
            cause += ", as the system does when memory is short"
        return InputError(
            f"Process {rank} of the run (PID {failure.pid}) {cause}, and the others were stopped. "
            "Give the same command again: training resumes from its last checkpoint."
        )
    message: Any = failure.message
    if not isinstance(message, dict):
        return ProcessFailedError(f"Process {rank} ended with status {failure.exitcode}.")
    extra = message["extraInfo"]
    if extra["is_input"]:
        return InputError(extra["text"])
    click.echo(extra["py_callstack"], err=True)
    return ProcessFailedError(f"Process {rank} failed: {extra['type']}: {extra['text']}")
