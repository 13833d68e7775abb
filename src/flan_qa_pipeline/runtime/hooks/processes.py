"""Hooks that check the number of processes and let them meet."""

from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.launched import is_one_of_several

if TYPE_CHECKING:
    from flan_qa_pipeline.config.parameters import DistributedParameters


class ProcessHooks:
    """Lets the processes of a run meet; refuses runners and numbers that do not fit them."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def after_context_created(self) -> None:
        if is_one_of_several():
            from flan_qa_pipeline.runtime.processes import join

            join(self._run.parameters.distributed)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any]) -> None:
        _require_processes(self._run.parameters.distributed, run_params["runner"])


def _require_processes(distributed: "DistributedParameters", runner: str) -> None:
    from accelerate import PartialState

    from flan_qa_pipeline.runtime.runner import DistributedRunner

    if "ParallelRunner" in runner:
        raise InputError(
            "ParallelRunner runs each node in another process, but nodes hand models and checked "
            "questions on in memory; use SequentialRunner or ThreadRunner, or several processes by "
            "--params=distributed.num_processes=…."
        )
    if is_one_of_several():
        if DistributedRunner.__name__ not in runner:
            raise InputError(
                f"This is one of {PartialState().num_processes} processes, whose nodes "
                f"{DistributedRunner.__module__}.{DistributedRunner.__name__} must run; use kedro "
                "run, or give that runner to session.run(runner=…)."
            )
    elif distributed.num_processes > 1:
        raise InputError(
            f"distributed.num_processes is {distributed.num_processes}, but this session is one "
            "process; use kedro run, which starts the others, or set it to 1."
        )
    if distributed.fsdp and PartialState().num_processes == 1:
        raise InputError(
            "distributed.fsdp spreads the base over several processes, but there is one; set "
            "distributed.num_processes, or fsdp to false."
        )
