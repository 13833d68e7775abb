"""Commands that this project adds to `kedro`, which finds the group `cli` here."""

import re
import sys
import traceback
from collections.abc import Callable
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, cast

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import LOAD_VERSION_HELP, PARAMS_ARG_HELP
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import (
    CONTEXT_SETTINGS,
    _split_load_versions,
    _split_params,
    env_option,
)
from kedro.framework.session import KedroSession
from kedro.framework.startup import ProjectMetadata
from kedro.io import DatasetError
from kedro.utils import find_kedro_project
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import flan_qa_pipeline
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.data.profile import profile_questions
from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.models.loading import load_tokenizer
from flan_qa_pipeline.pipelines.data_engineering.nodes import (
    flatten_questions,
    reject_long_questions,
)
from flan_qa_pipeline.reporting.profile_tables import profile_tables
from flan_qa_pipeline.runtime import interruption
from flan_qa_pipeline.runtime.processes import in_processes

REFUSED_BY_KEDRO = (DatasetError, ValueError)
CONFIGURES = ("kedro.config", "kedro.io.catalog_config_resolver")  # modules that read conf
LONGEST_REASON = 200


def in_a_sentence(command: Callable[..., Any]) -> Callable[..., Any]:
    """Tell of what Kedro refuses (an environment, file, name) in a sentence, and of Ctrl+C."""

    @wraps(command)
    def wrapper(*args: Any, **options: Any) -> Any:
        try:
            with interruption.raised():
                return command(*args, **options)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) or interruption.came():
                interruption.tell()
                sys.exit(interruption.STATUS)
            *_, last = places = [
                frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)
            ]
            if any(place.startswith(CONFIGURES) for place in places):
                raise InputError(
                    _about_configuration(error, options.get("conf_source"), options.get("env"))
                ) from error
            if last.partition(".")[0] == "kedro" and isinstance(error, REFUSED_BY_KEDRO):
                raise InputError(f"{in_one_line(error)}.") from error
            raise

    return wrapper


def split_params(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Read `--params` as Kedro does, but a revision of digits as text."""
    if isinstance(value, str):
        value = re.sub(r"\b(model\.revision=)(\d\w*)", r"\1'\2'", value)
    return _split_params(context, option, value)


def _about_configuration(error: Exception, conf_source: str | None, env: str | None) -> str:
    """What Kedro or YAML says of the configuration, with the file if it does not name one."""
    reason = in_one_line(error)
    if isinstance(error, MissingConfigException) or ".yml" in reason:
        return f"{reason}."
    if len(reason) > LONGEST_REASON:  # OmegaConf names all places within a loop
        reason = f"{reason[:LONGEST_REASON]}…"
    folder = Path(conf_source or (find_kedro_project(Path.cwd()) or Path.cwd()) / "conf")
    environments = (folder / "base", folder / (env or "local"))
    for path in sorted(path for place in environments for path in place.rglob("*.yml")):
        try:
            well = isinstance(OmegaConf.load(path), DictConfig)
        except Exception:  # of YAML, OmegaConf, decoding or recursion
            well = False
        if not well:
            return f"{path} cannot be read: {reason}; it must map names to values, in YAML."
    return f"The configuration in {folder} cannot be read: {reason}; correct it."


def loads_adapter(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `kedro run` that say which adapter is loaded and how it is used."""
    command = in_a_sentence(command)
    for option in (
        click.option("--params", default="", help=PARAMS_ARG_HELP, callback=split_params),
        click.option(
            "--load-versions", default="", help=LOAD_VERSION_HELP, callback=_split_load_versions
        ),
        env_option,
    ):
        command = option(command)
    return command


@click.group(context_settings=CONTEXT_SETTINGS, name="flan_qa_pipeline")
def cli() -> None:
    """Commands of this project."""


run = copy(kedro_run)  # the packaged project runs this one, too
run.callback = in_a_sentence(in_processes(cast(Callable[..., Any], kedro_run.callback)))
run.params = [copy(option) for option in kedro_run.params]
next(option for option in run.params if option.name == "params").callback = split_params
cli.add_command(run)


@cli.command()
@click.option("--context", help="The text that questions are about.")
@click.option(
    "--context-file",
    type=click.File(encoding="utf-8"),
    help="A file with the text; - is the standard input.",
)
@click.option(
    "--question",
    "questions",
    multiple=True,
    help="A question about the text; may be given several times. Without one, ask is interactive.",
)
@loads_adapter
@click.pass_obj
def ask(
    metadata: ProjectMetadata,
    context: str | None,
    context_file: TextIO | None,
    questions: tuple[str, ...],
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Answer questions about a text with the latest adapter."""
    if context is not None and context_file is not None:
        raise click.UsageError("Give --context or --context-file, not both.")
    if context_file is not None:
        try:
            context = context_file.read()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{context_file.name} is not UTF-8 ({error.reason} at byte {error.start}); save it "
                "as UTF-8."
            ) from error
    answerer = _load_answerer(metadata, env, load_versions, params)
    try:
        if context is None:
            context = click.prompt("Context")
        for question in questions:
            if problem := answerer.problem(context, question):
                raise InputError(problem)
        for answer in answerer.answer([(context, question) for question in questions]):
            _tell(answer)
        while not questions and (
            question := click.prompt("Question (none ends)", default="", show_default=False)
        ):
            if problem := answerer.problem(context, question):
                click.echo(problem, err=True)
            else:
                _tell(answerer.answer([(context, question)])[0])
    except click.Abort:  # the end of the input
        click.echo()


@cli.command()
@click.option("--host", help="Address to listen on, instead of serving.host.")
@click.option("--port", type=int, help="Port to listen on, instead of serving.port.")
@loads_adapter
@click.pass_obj
def serve(
    metadata: ProjectMetadata,
    host: str | None,
    port: int | None,
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Open a web page and an HTTP API that answer with the base and with the latest adapter."""
    try:
        from flan_qa_pipeline.answering import web_page as serving
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError(
            "serve needs gradio, which is not installed; pip install 'flan_qa_pipeline[app]'."
        ) from error
    session = KedroSession.create(metadata.project_path, env=env, runtime_params=params)
    with session:
        raw = session.load_context().config_loader["parameters"]
    chosen = {"host": host, "port": port}
    raw["serving"] |= {name: value for name, value in chosen.items() if value is not None}
    settings = check_parameters(raw).serving
    serving.check_address(settings)
    answerer = _load_answerer(metadata, env, load_versions, params)
    page = serving.build_page(answerer, settings)
    click.echo(f"{serving.launch(page, settings)} answers until Ctrl+C.")
    page.block_thread()


@cli.command("check-data")
@click.argument("file")
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="The split to check, where the names of a folder's files tell several apart.",
)
@click.option("--params", default="", help=PARAMS_ARG_HELP, callback=split_params)
@env_option
@click.pass_obj
@in_a_sentence
def check_data(
    metadata: ProjectMetadata, file: str, split: str, env: str | None, params: dict[str, Any]
) -> None:
    """Check a file of training questions: counts, lengths, windows, rejects; nothing is trained."""
    session = KedroSession.create(metadata.project_path, env=env, runtime_params=params)
    with session:
        parameters = check_parameters(session.load_context().config_loader["parameters"])
    model, prompt, tokenization = parameters.model, parameters.prompt, parameters.tokenization
    files = SquadFileDataset(filepath=file, split=split).load()
    questions, invalid = flatten_questions(files, file, "skip", parameters.data.columns)
    questions, rejected = reject_long_questions(
        questions, invalid, file, "skip", model, prompt, tokenization
    )
    profile = profile_questions(questions, load_tokenizer(model), prompt, tokenization)
    console = Console(width=min(80, Console().width), highlight=False)
    for table in profile_tables(profile, rejected, tokenization):
        console.print(table, "")
    if len(rejected):
        console.print(
            f"{len(rejected):,} rejected: a run stops at the first one, or leaves them out and "
            "lists them with data.on_invalid=skip."
        )


def _load_answerer(
    metadata: ProjectMetadata,
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> "flan_qa_pipeline.QuestionAnswerer":
    if unknown := sorted(load_versions.keys() - {"adapter"}):
        command = click.get_current_context().info_name
        raise InputError(
            f"--load-versions names {unknown[0]}; {command} loads nothing but adapter."
        )
    return flan_qa_pipeline.QuestionAnswerer.from_project(
        metadata.project_path,
        adapter_version=load_versions.get("adapter"),
        env=env,
        runtime_params=params,
    )


def _tell(answer: "flan_qa_pipeline.Answer") -> None:
    click.secho("no answer in this context" if answer.abstained else answer.text, bold=True)
    place = "" if answer.start is None else f", characters {answer.start} to {answer.end}"
    click.secho(
        f"  score {answer.score:.2f}, no-answer probability "
        f"{answer.no_answer_probability:.2f}{place}",
        dim=True,
    )
