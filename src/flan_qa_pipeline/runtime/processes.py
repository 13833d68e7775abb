"""A run in several processes: how they start, who does what, how they agree, how they end.

Every process executes the same `kedro run`, as `torchrun` has it. Nodes whose tags are in
`EVERYWHERE` run in all of them, the others in the first alone, which alone writes to the catalog.
"""

import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import chdir
from datetime import timedelta
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import PartialState
from kedro.framework.project import settings
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from kedro.runner.task import Task
from kedro.utils import find_kedro_project
from pluggy import PluginManager
from torch.distributed.elastic.agent.server import api as agent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from flan_qa_pipeline.config.parameters import DistributedParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.exchange import broadcast_json
from flan_qa_pipeline.runtime import interruption, orphans, rendezvous
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog

EVERYWHERE = {"quantize", "train", "predict", "merge"}  # nodes with a model
NOTICED_AFTER = 10  # seconds at most
STARTED_HERE = "flan_qa_pipeline"  # the launch's id, in the environment of its processes


def is_one_of_several() -> bool:
    """Whether `torchrun`, or a run with `distributed.num_processes`, has started this process."""
    return "RANK" in os.environ


def join(distributed: DistributedParameters) -> PartialState:
    """Meet the other processes: by NCCL if there are GPUs, else by gloo."""
    return PartialState(
        cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=distributed.timeout_minutes)
    )


class DistributedRunner(SequentialRunner):
    """Runs the nodes one after the other, each in all processes or in the first alone.

    All processes load the same versions: those that the first one loads.
    """

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        leads = PartialState().is_main_process
        PartialState().wait_for_everyone()
        load_counts = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        for node in pipeline.nodes:
            everywhere = bool(node.tags & EVERYWHERE)
            if everywhere:
                _agree_on_versions(catalog, node.inputs)
            if everywhere or leads:
                Task(node, catalog, self._is_async, hook_manager, run_id).execute()
            self._release_datasets(node, catalog, load_counts, pipeline)


def _agree_on_versions(catalog: AtomicCatalog, names: Iterable[str]) -> None:
    """Wait for all processes; let them load the versions that the first one would load."""
    versions = broadcast_json(catalog.versions(names) if PartialState().is_main_process else None)
    for name, version in versions.items():
        catalog.pin(name, version)
        if not catalog.exists(name):
            raise InputError(
                f"{name}: process {PartialState().process_index} does not see version {version}, "
                "which process 0 reads; processes on several machines need one project folder that "
                "all of them see, at the same path."
            )


def in_processes(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what `kedro run` calls: start `distributed.num_processes` such runs, or be one of them.

    A run takes place in the project's folder, whichever folder of it the command was given in.

    Raises:
        InputError: a process failed or was killed (the others are stopped), there are fewer GPUs
            than processes, or a runner was chosen that knows nothing of processes.
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
        result = record(run)(**options | {"runner": runner})
    except Exception:
        if _started_here() or os.environ["RANK"] != "0":
            sys.exit(1)  # who started the processes tells of the first that failed
        raise
    except KeyboardInterrupt:
        if _started_here():
            sys.exit(interruption.STATUS)  # who started the processes tells of it
        raise
    PartialState().destroy_process_group()
    return result


def _started_here() -> bool:
    return os.environ.get("TORCHELASTIC_RUN_ID") == STARTED_HERE


def _start(count: int) -> None:
    """Run this very command in so many processes on this machine; return when all have ended."""
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise InputError(
            f"distributed.num_processes is {count}, but this machine has "
            f"{torch.cuda.device_count()} GPUs; a process needs one of its own."
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ[orphans.LAUNCHER] = str(os.getpid())
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    rendezvous.register()
    logging.getLogger(agent.__name__).setLevel(logging.CRITICAL)  # it tells of signals
    with orphans.launcher_folder() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=STARTED_HERE,
            rdzv_backend=rendezvous.BACKEND,
            local_addr=rendezvous.HOST,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder), local_ranks_filter={0}),
        )
        try:
            launch_agent(config, sys.executable, sys.orig_argv[1:])
        except ChildFailedError as error:
            raise _explained(error) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)


def _explained(error: ChildFailedError) -> click.ClickException:
    """Say of which process the run ended; what the others met is the consequence.

    When one fails the others are sent SIGTERM and, half a minute later, SIGKILL. When one is
    killed the others may fail before that is noticed.
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
            "Give the same command again: a training goes on from its last checkpoint."
        )
    if not isinstance(failure.message, dict):
        return click.ClickException(f"Process {rank} ended with status {failure.exitcode}.")
    kind, _, text = failure.message["message"].partition(": ")
    if kind == InputError.__name__:
        return InputError(text)
    click.echo(failure.message["extraInfo"]["py_callstack"], err=True)
    return click.ClickException(f"Process {rank} failed: {kind}: {text}")
