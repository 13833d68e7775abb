"""A run in several processes: how they start and end, and which error ended them.

Every process executes the same `kedro run`, as under `torchrun`. `runner.DistributedRunner` decides
which process runs which node.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import chdir
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from kedro.framework.project import settings
from kedro.utils import find_kedro_project
from torch.distributed.elastic.agent.server import api as agent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    record,
)
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from flan_qa_pipeline.config.parameters import DistributedParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import interruption, orphans, rendezvous
from flan_qa_pipeline.runtime.launched import (
    LAUNCHED_HERE,
    is_launched_here,
    is_one_of_several,
)
from flan_qa_pipeline.runtime.process_errors import ErrorRecorder, explained
from flan_qa_pipeline.runtime.runner import DistributedRunner


def join(distributed: DistributedParameters) -> PartialState:
    """Join the other processes: over NCCL if there are GPUs, else over gloo."""
    return PartialState(
        cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=distributed.timeout_minutes)
    )


def in_processes(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the callback of `kedro run`: start `distributed.num_processes` runs, or be one of them.

    A run works in the project's folder, even if the command was given in a folder below it.

    Raises:
        InputError: a process failed or was killed (the others are stopped), there are fewer GPUs
            than processes, or the chosen runner does not support several processes.
        ProcessFailedError: a process failed with an error that is no bad input.
    """

    @wraps(run)
    def wrapper(**options: Any) -> Any:
        if not is_one_of_several() and (count := _num_processes(options)) > 1:
            return _start(count)
        with chdir(find_kedro_project(Path.cwd()) or Path.cwd()):
            return _take_part(run, options) if is_one_of_several() else run(**options)

    return wrapper


def _num_processes(options: dict[str, Any]) -> int:
    with settings.SESSION_CLASS.create(
        env=options["env"],
        conf_source=options["conf_source"],
        runtime_params=options["params"],
    ) as session:
        parameters = session.load_context().config_loader["parameters"]
    count: int = parameters["distributed"]["num_processes"]
    return count


def _take_part(run: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["runner"] not in (None, "SequentialRunner"):
        raise InputError(
            f"--runner={options['runner']}: several processes run the nodes in the same order; "
            "leave the option out."
        )
    runner = f"{DistributedRunner.__module__}.{DistributedRunner.__name__}"
    try:
        result = record(run, ErrorRecorder())(**options | {"runner": runner})
    except Exception:
        if is_launched_here() or os.environ["RANK"] != "0":
            sys.exit(1)  # the launcher reports the first process that failed
        raise
    except KeyboardInterrupt:
        if is_launched_here():
            sys.exit(interruption.STATUS)  # the launcher reports it
        raise
    PartialState().destroy_process_group()
    return result


def _start(count: int) -> None:
    """Run this command in `count` processes on this machine; return when all have ended."""
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise InputError(
            f"distributed.num_processes is {count}, but this machine has "
            f"{torch.cuda.device_count()} GPUs; lower it to one process a GPU."
        )
    os.environ[orphans.LAUNCHER] = str(os.getpid())
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    rendezvous.register()
    logging.getLogger(agent.__name__).setLevel(logging.CRITICAL)  # it logs signals
    with orphans.launcher_folder() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=LAUNCHED_HERE,
            rdzv_backend=rendezvous.BACKEND,
            local_addr=rendezvous.HOST,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder), local_ranks_filter={0}),
        )
        try:
            launch_agent(config, sys.executable, sys.orig_argv[1:])
        except ChildFailedError as error:
            raise explained(error) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)
