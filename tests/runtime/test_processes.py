"""Runs in two processes by gloo against runs in one: the same answers, gradients and ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import sleep, time

import pandas as pd
import psutil
import pytest
import torch
from conftest import DEVICE, make_project, read_conf
from english import short_pretraining, write_english
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration

from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.errors import InputError, ProcessFailedError
from flan_qa_pipeline.runtime import process_errors
from flan_qa_pipeline.runtime.orphans import LOCK, launcher_folder
from flan_qa_pipeline.runtime.process_errors import ERROR_FILE, ErrorRecorder, explained
from flan_qa_pipeline.training.requirements import require_trainable

KEDRO = ["-m", "kedro", "run"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-ranks-filter=0"]
TRAINING = ["--from-nodes=quantize_base_model", "--to-nodes=train_adapter"]
KILLED = """
import os, signal, sys
sys.path.insert(0, "src")
from kedro.framework.cli.cli import main
from flan_qa_pipeline.training.best_adapter import BestAdapter


def kill(self, args, state, control, **kwargs):
    if state.global_step == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


BestAdapter.on_step_begin = kill
main()
"""
PRETRAINING_FAILS = """
import os, signal, sys
sys.path.insert(0, "src")
from kedro.framework.cli.cli import main
from flan_qa_pipeline.pretraining.training_steps import Phase

take_step = Phase._take_step


def fail(self, *args):
    if self.progress.step == 2 and os.environ["RANK"] == "1":
        if os.environ["END"] == "raise":
            raise ArithmeticError("lost count")
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, *args)


Phase._take_step = fail
main()
"""
VARIES = ("runtime", "per_second", "peak_memory")


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    """A copy of the project; this process computes in one thread, as two of two cores do."""
    if DEVICE.type == "cuda":
        pytest.skip("by gloo, processes compute on a CPU; hide the GPUs to run this")
    root = tmp_path_factory.mktemp("project")
    make_project(root, corpus)
    write_english(root, 30)
    rows = [
        (paragraph["context"], paragraph["qas"][0]["question"])
        for article in corpus["data"][24:]
        for paragraph in article["paragraphs"]
    ]
    questions = pd.DataFrame(rows, columns=["context", "question"])
    questions.to_csv(root / "data/01_raw/example_questions.csv", index=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def options(tiny_base):
    """Of a run whose updates are proportional to the gradients."""
    return {
        "model.name": str(tiny_base),
        "model.compute_dtype": "float32",
        "model.dequantize": "false",
        "data.max_train_questions": 64,
        "data.max_validation_questions": 40,
        "generation.batch_tokens": 500,
        "inference.chunk_size": 5,
        "reporting.memory_formats": [],
        "training.auto_find_batch_size": "auto",
        "training.optim": "sgd",
        "training.learning_rate": 0.2,
        "training.max_steps": 6,
        "training.logging_steps": 1,
        "training.per_device_train_batch_size": 4,
        "training.save_steps": 2,
    }


def given(parameters: dict) -> str:
    return "--params=" + ",".join(f"{name}={value}" for name, value in parameters.items())


def nested(parameters: dict) -> dict:
    sections = {}
    for name, value in parameters.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def run_alone(parameters: dict, *pipelines: str, **kwargs) -> str:
    """Run in this process; return the version."""
    with KedroSession.create(runtime_params=nested(parameters)) as session:
        session.run(pipeline_names=list(pipelines), **kwargs)
        return session.session_id


def run_in_two(*command: str) -> subprocess.CompletedProcess:
    """Run in two processes of one thread each."""
    return subprocess.run(  # noqa: S603
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_version(dataset: str) -> str:
    (folder,) = Path("data").glob(f"0?_*/{dataset}")
    return max(path.name for path in folder.iterdir())


def adapter(version: str) -> tuple[dict[str, torch.Tensor], dict]:
    folder = Path("data/06_models/adapter", version, "adapter")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return load_file(folder / "adapter_model.safetensors"), training


def log_of(training: dict) -> list[dict]:
    return [
        {key: value for key, value in entry.items() if not any(v in key for v in VARIES)}
        for entry in training["log"]
    ]


@pytest.fixture(scope="module")
def in_two(project, options):
    """The version of a whole run in two processes that torchrun has started."""
    done = run_in_two(*TORCHRUN, *KEDRO, "--pipelines=__default__,inference", given(options))
    assert done.returncode == 0, done.stderr
    return done, last_version("adapter")


@pytest.mark.slow
def test_the_first_process_alone_writes_and_tells(project, in_two):
    done, version = in_two
    for folder in Path("data").glob("0[3-8]_*/*/*"):
        assert folder.name == version, folder
    assert Path(f"data/08_reporting/report.html/{version}/report.html").is_file()
    assert len(list(Path(f"data/08_reporting/tensorboard/{version}").iterdir())) == 1
    assert done.stdout.count("report.html\n") == 1
    assert done.stdout.count("LoRA trains") == 1
    assert "2 processes train on batches of 4, accumulated 1" in done.stdout
    assert "training.auto_find_batch_size auto: off" in done.stdout
    assert "WARNING" not in done.stdout and "Warning" not in done.stderr


@pytest.mark.slow
def test_gradients_are_those_of_one_process_at_the_same_effective_batch(in_two, options):
    run_alone(options | {"training.per_device_train_batch_size": 8}, "modeling")
    (alone, log_alone), (in_two, log_in_two) = adapter(last_version("adapter")), adapter(in_two[1])
    assert (log_alone["processes"], log_in_two["processes"]) == (1, 2)
    for name, weights in alone.items():
        torch.testing.assert_close(in_two[name], weights, rtol=1e-4, atol=1e-6)
    steps = [[e for e in log_of(log) if "grad_norm" in e] for log in (log_alone, log_in_two)]
    assert len(steps[0]) == 6
    for one, two in zip(*steps, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_answers_are_those_of_one_process(in_two, options):
    _, version = in_two
    alone = run_alone(options, "evaluate", "inference", load_versions={"adapter": version})
    for name in ("baseline", "finetuned", "finetuned_calibration"):
        path = Path(f"data/07_model_output/{name}_predictions.parquet")
        one, two = (pd.read_parquet(path / v / path.name) for v in (alone, version))
        pd.testing.assert_frame_equal(two, one, check_exact=True)
    path = Path("data/07_model_output/answers.csv")
    one, two = ((path / v / path.name).read_text() for v in (alone, version))
    assert two == one


# Runs of one launch, in two processes: what they save is read by several tests. After them, the
# processes exchange values and train a model whose loss differs between them. An error in one of
# these parts ends the launch.
SEVERAL_RUNS = """
import json, sys
import torch
from accelerate import PartialState
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from torch.distributed import distributed_c10d
from transformers import Seq2SeqTrainingArguments
from flan_qa_pipeline.models.exchange import broadcast_json, gather_json, gather_tensors
from flan_qa_pipeline.runtime.runner import DistributedRunner
from flan_qa_pipeline.training.best_adapter import BestAdapter
from flan_qa_pipeline.training.resuming import ResumableTrainer


def refuse(*args, **kwargs):
    raise AssertionError("an object is pickled for other processes")


def stop(self, args, state, control, **kwargs):
    if state.global_step == 5:
        raise KeyboardInterrupt


distributed_c10d._object_to_tensor = distributed_c10d._tensor_to_object = refuse
given, made = sys.argv[1:]
project = bootstrap_project(".").project_path
go_on = BestAdapter.on_step_begin
versions = []
for parameters, nodes, interrupted in json.load(open(given)):
    BestAdapter.on_step_begin = stop if interrupted else go_on
    try:
        with KedroSession.create(project, runtime_params=parameters) as session:
            session.run(**nodes, runner=DistributedRunner())
    except KeyboardInterrupt:
        assert interrupted
    versions.append(session.session_id)
process = PartialState()
rank = process.process_index
if rank == 0:
    json.dump(versions, open(made, "w"))

sent = [None, "ä\\ud800", 0.1, float("-inf"), {"a": [1, True]}]
assert broadcast_json(sent if rank == 0 else None) == sent
assert gather_json([rank] * (1 + 300 * rank)) == [[0], [1] * 301]
tensors = {"a": torch.arange(3 + rank), "b": torch.tensor(0.5)} if rank else {}
(zero, none), (one, some) = gather_tensors(rank, tensors)
assert (zero, one, none) == (0, 1, {}) and torch.equal(some["a"], torch.arange(4))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, labels):
        return {"loss": self.weight * 0 + labels.float().mean()}


trainer = ResumableTrainer(
    model=Model(),
    args=Seq2SeqTrainingArguments(
        output_dir="exchanges", max_steps=5, logging_steps=2, per_device_train_batch_size=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        train_sampling_strategy="sequential", accelerator_config={"split_batches": False},
    ),
    train_dataset=[{"labels": n} for n in range(10)],
)
trainer.train_or_resume("never")
assert trainer.state.log_history[-1]["train_loss"] == 4.5, trainer.state.log_history
process.destroy_process_group()
"""
TRAIN = {
    "from_nodes": ["modeling.quantize_base_model"],
    "to_nodes": ["modeling.train_adapter"],
}


@pytest.fixture(scope="module")
def drawing(options):
    """Options of a training that draws random numbers."""
    changes = {"training.optim": "adamw_torch", "training.learning_rate": 1e-3}
    return options | changes | {"distributed.num_processes": 2, "lora.dropout": 0.3}


@pytest.fixture(scope="module")
def several_runs(project, in_two, drawing, options, tiny_base):
    """The launch of several runs, and the version of each by name."""
    stored = shutil.copytree(tiny_base, project / "stored")
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["wo"],
    )
    T5ForConditionalGeneration.from_pretrained(
        tiny_base, dtype=torch.float32, quantization_config=packed
    ).save_pretrained(stored)
    sharded = drawing | {"distributed.fsdp": True}
    short = options | {"model.skip_modules": ["wo"], "distributed.fsdp": True}
    short |= {"training.max_steps": 2, "distributed.num_processes": 2}
    runs = {
        "whole": (nested(drawing), TRAIN, False),
        "interrupted": (nested(sharded), TRAIN, True),
        "sharded": (nested(sharded), TRAIN | {"to_nodes": ["prediction.predict_finetuned"]}, False),
        "packed at load": (nested(short), TRAIN, False),
        "pretrained": (short_pretraining(read_conf()), {"pipeline_names": ["pretrain"]}, False),
        "of a stored base": (nested(short | {"model.name": str(stored)}), TRAIN, False),
    }
    plan, made = project / "runs.json", project / "versions.json"
    plan.write_text(json.dumps(list(runs.values())))
    (project / "several_runs.py").write_text(SEVERAL_RUNS, encoding="utf-8")
    done = run_in_two(*TORCHRUN, "several_runs.py", str(plan), str(made))
    assert made.exists(), done.stderr
    return done, dict(zip(runs, json.loads(made.read_text()), strict=True))


def kill_one(*arguments: str) -> None:
    killed = run_in_two("-c", KILLED, "run", *arguments)
    assert killed.returncode == 1
    assert "Error: Process 1 of the run (PID " in killed.stderr
    assert "was ended by SIGKILL" in killed.stderr
    assert "Traceback" not in killed.stderr
    checkpoints = Path("data/06_models/checkpoints").glob("*/*")
    assert [path.name for path in checkpoints] == ["checkpoint-4"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_resumes(several_runs, drawing):
    expected, log = adapter(several_runs[1]["whole"])
    kill_one(*TRAINING, given(drawing))
    resumed = run_in_two(*KEDRO, *TRAINING, given(drawing))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes from the checkpoint" in resumed.stdout
    weights, training = adapter(last_version("adapter"))
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
    assert log_of(training) == log_of(log)


@pytest.mark.slow
def test_a_sharded_base_trains_resumes_and_answers_as_a_whole_one(several_runs, options):
    done, versions = several_runs
    expected, log = adapter(versions["whole"])
    assert done.stdout.count("resumes from the checkpoint") == 1
    weights, training = adapter(versions["sharded"])
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
    for one, other in zip(log_of(log)[:-1], log_of(training)[:-1], strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    version = versions["sharded"]
    alone = run_alone(
        options,
        "evaluate",
        to_nodes=["prediction.predict_finetuned"],
        load_versions={"adapter": version},
    )
    path = Path("data/07_model_output/finetuned_predictions.parquet")
    one, two = (pd.read_parquet(path / v / path.name) for v in (alone, version))
    pd.testing.assert_frame_equal(two, one, check_exact=True)


@pytest.mark.slow
def test_a_base_stored_in_4_bits_is_sharded_like_one_packed_at_load(several_runs):
    _, versions = several_runs
    expected, found = (
        adapter(versions[name])[0] for name in ("packed at load", "of a stored base")
    )
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
def test_two_processes_pretrain_together(several_runs):
    path = Path("data/08_reporting/pretrained_base_log.csv")
    log = pd.read_csv(path / several_runs[1]["pretrained"] / path.name)
    assert log["step"].tolist() == [2, 4, 6, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("kill", "Process 1 of the run (PID "),
        ("raise", "Process 1 failed: ArithmeticError: lost count"),
    ],
)
def test_a_process_that_dies_ends_the_pretraining_with_its_cause(project, monkeypatch, end, told):
    monkeypatch.setenv("END", end)
    parameters = short_pretraining(read_conf())
    parameters["pretrain"]["seed"] = 11  # else it resumes at the end of another test's training
    path = project / "conf" / "dies" / "parameters.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(parameters | {"distributed": {"num_processes": 2}}))
    arguments = ["run", "--env=dies", "--pipelines=pretrain", "--to-nodes=pretrain_reader"]
    began = time()
    questions = "--params=data.train_file=data/01_raw/questions.json"
    ended = run_in_two("-c", PRETRAINING_FAILS, *arguments, questions)
    assert ended.returncode == 1 and told in ended.stderr, ended.stderr
    assert time() - began < 60  # with the start; a collective would wait for 10 minutes


@pytest.mark.slow
def test_processes_exchange_nothing_pickled_and_agree_on_the_mean_loss(several_runs):
    """In the fifth step, which is not logged, one sees an example of loss 8, the other of 9."""
    done, _ = several_runs
    assert done.returncode == 0, done.stderr


def test_a_base_is_spread_over_several_processes_only(project, options):
    with pytest.raises(InputError, match="distributed.fsdp spreads .* but there is one"):
        run_alone(options | {"distributed.fsdp": True}, "evaluate")


def has_ended(process):
    """Whether a process runs no more; PID 1 of a container may leave its entry as a zombie."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def started(options, tmp_path):
    """A run of two processes in a session of its own, once both have met the launcher."""
    command = [sys.executable, *KEDRO, given(options | {"distributed.num_processes": 2})]
    with subprocess.Popen(  # noqa: S603
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        try:
            while len(workers := psutil.Process(launcher.pid).children()) < 2:
                assert launcher.poll() is None
                sleep(0.05)
            yield launcher, workers
        finally:
            launcher.kill()


def listening(process: psutil.Process) -> set[str]:
    return {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("early", [True, False])
def test_processes_listen_on_loopback_and_end_with_their_launcher(
    project, options, tmp_path, monkeypatch, early
):
    """Killed when the others have just begun to import, or have met."""
    with started(options, tmp_path) as (launcher, workers):
        if not early:
            while not all(map(listening, workers)):
                sleep(0.05)
            for process in (psutil.Process(launcher.pid), *workers):
                assert listening(process) == {"127.0.0.1"}
        launcher.kill()
        psutil.wait_procs(workers, timeout=5)
        assert all(map(has_ended, workers))
    (left,) = tmp_path.glob("flan_qa_pipeline_*")
    mine = tmp_path / "flan_qa_pipeline_notes"
    mine.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with launcher_folder() as living:
        assert left.exists()  # it may be one that is about to be locked
        for folder in (left, living):
            os.utime(folder / LOCK, (0, 0))
        with launcher_folder():
            assert not left.exists()
            assert living.exists() and mine.exists()
    assert list(tmp_path.glob("flan_qa_pipeline_*")) == [mine]


def test_ctrl_c_ends_all_processes_with_one_line(project, options, tmp_path):
    with started(options, tmp_path) as (launcher, workers):
        while not all(map(listening, workers)):
            sleep(0.05)
        for _ in range(3):
            os.killpg(launcher.pid, signal.SIGINT)
        _, told = launcher.communicate(timeout=60)
        assert launcher.returncode == 130
        assert [line for line in told.splitlines() if line] == ["Interrupted."]
        assert all(map(has_ended, workers))
    assert not list(tmp_path.glob("flan_qa_pipeline_*"))


LOST = RuntimeError("lost process 1")


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        ({0: (InputError("this is missing; give it."), 0), 1: -15}, "this is missing; give it."),
        ({0: (InputError("a: b: c."), 0), 1: -15}, "a: b: c."),
        ({0: (DatasetError("scores: no\nroom"), 0), 1: -15}, "scores: no room."),
        ({0: (LOST, 1), 1: (ValueError("bad"), 3)}, "Process 1 failed: ValueError: bad"),
        ({0: (LOST, 1), 1: -9}, "Process 1 of the run (PID 7) was ended by SIGKILL"),
        ({0: (ValueError("bad"), 40), 1: -9}, "Process 0 failed: ValueError: bad"),
        ({0: -15, 1: -11}, "Process 1 of the run (PID 7) was ended by SIGSEGV"),
    ],
)
def test_the_first_cause_is_told(failed, told, tmp_path, capsys, monkeypatch):
    """By rank the error, which the process itself records, and its age in seconds, or the signal.

    An error that is no bad input comes with its traceback.
    """
    failures = {}
    now = time()
    for rank, error in failed.items():
        path = tmp_path / f"{rank}.json"
        code = error
        if isinstance(error, tuple):
            code = 1
            with monkeypatch.context() as patch:
                patch.setenv(ERROR_FILE, str(path))
                patch.setattr(process_errors.time, "time", lambda ago=error[1]: now - ago)
                ErrorRecorder().record_exception(error[0])
        failures[rank] = ProcessFailure(rank, 7, code, str(path))
    error = explained(ChildFailedError("run", failures))
    assert str(error).startswith(told)
    assert isinstance(error, ProcessFailedError if "ValueError" in told else InputError)
    assert ("ValueError: bad" in capsys.readouterr().err) == ("ValueError" in told)


def test_a_session_does_not_pass_over_the_number_of_processes(project, options):
    with pytest.raises(InputError, match="num_processes is 2, but this session is one process"):
        run_alone(options | {"distributed.num_processes": 2}, "evaluate")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size: 2 processes cannot search"),
        ({"optim": "ademamix"}, "ademamix does not support the sharded weights"),
        ({"optim": "adafactor"}, "adafactor does not support the sharded weights"),
        ({"cuda_graphs": True}, "steps cannot be captured: .*distributed.fsdp spreads the weights"),
    ],
)
def test_what_several_processes_cannot_train_with_is_refused(raw_parameters, changes, complaint):
    raw_parameters["training"] |= changes
    raw_parameters["distributed"]["fsdp"] = True
    with pytest.raises(InputError, match=complaint):
        require_trainable(check_parameters(raw_parameters), 2)
