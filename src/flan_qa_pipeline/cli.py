"""Commands that this project adds to `kedro`, which finds the group `cli` here."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TextIO, cast

import click
import rich
import yaml
from kedro.framework.cli.catalog import catalog as kedro_catalog
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.registry import registry as kedro_registry
from kedro.framework.cli.utils import CONTEXT_SETTINGS
from kedro.io import DatasetError

from flan_qa_pipeline.errors import InputError, ProcessFailedError, in_one_line
from flan_qa_pipeline.runtime import interruption

if TYPE_CHECKING:
    from kedro.config import AbstractConfigLoader
    from kedro.framework.startup import ProjectMetadata

    import flan_qa_pipeline


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn the errors that a user can mend into click's, which it prints in one line.

    This is the one place where the project's errors become words of the command line. Ctrl+C ends
    the command with one line, too.
    """
    try:
        with interruption.raised():
            yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or interruption.came():
            interruption.tell()
            sys.exit(interruption.STATUS)
        if isinstance(error, InputError | ProcessFailedError):
            raise click.ClickException(str(error)) from error
        if isinstance(error, DatasetError):
            raise click.ClickException(f"{in_one_line(error)}.") from error
        raise


class InWords(click.Command):
    """A command that reports errors that a user can mend in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        with _in_words():
            return super().invoke(ctx)


class GroupInWords(click.Group):
    """A group whose commands report errors as those of `InWords` do."""

    command_class = InWords

    def invoke(self, ctx: click.Context) -> Any:
        with _in_words():
            return super().invoke(ctx)


def split_params(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Read `--params` as Kedro does, but keep a revision of digits a text."""
    if isinstance(value, str):
        value = re.sub(r"\b(model\.revision=)(\d\w*)", r"\1'\2'", value)
    return cast(Callable[..., Any], _run_option("params").callback)(context, option, value)


def _run_option(name: str) -> click.Parameter:
    return next(option for option in kedro_run.params if option.name == name)


def _with_split_params(option: click.Parameter) -> click.Parameter:
    changed = copy(option)
    if option.name == "params":
        changed.callback = split_params
    return changed


def configured(command: click.Command) -> click.Command:
    """Add the options of `kedro run` that choose the configuration."""
    command.params += [_with_split_params(_run_option(name)) for name in ("params", "env")]
    return command


def loads_adapter(command: click.Command) -> click.Command:
    """Add the options of `kedro run` that choose the adapter and how it is used."""
    command.params.append(copy(_run_option("load_versions")))
    return configured(command)


@click.group(cls=GroupInWords, context_settings=CONTEXT_SETTINGS, name="flan_qa_pipeline")
def cli() -> None:
    """Commands of this project."""


def _run(**options: Any) -> Any:
    from flan_qa_pipeline.runtime.processes import in_processes

    return in_processes(_known(cast(Callable[..., Any], kedro_run.callback)))(**options)


def _known(run: Callable[..., Any]) -> Callable[..., Any]:
    """Check the pipelines and nodes that the options name before the run starts."""

    @wraps(run)
    def wrapper(**options: Any) -> Any:
        from flan_qa_pipeline.runtime.selection import require_known

        return run(**require_known(options))

    return wrapper


run = InWords(  # the packaged project runs this one, too
    name="run",
    help=kedro_run.help,
    callback=_run,
    params=[_with_split_params(option) for option in kedro_run.params],
)
cli.add_command(run)
cli.add_command(
    GroupInWords(name="catalog", help=kedro_catalog.help, commands=kedro_catalog.commands)
)
registry = GroupInWords(
    name="registry", help=kedro_registry.help, commands=dict(kedro_registry.commands)
)
cli.add_command(registry)


@registry.command("list")
def list_pipelines() -> None:
    """List the registered pipelines."""
    from flan_qa_pipeline.pipeline_registry import PIPELINES

    click.echo(yaml.dump(sorted(PIPELINES)))


@loads_adapter
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
    help="A question about the text; repeat the option for more. Without one, ask is interactive.",
)
@click.pass_obj
def ask(
    metadata: "ProjectMetadata",
    context: str | None,
    context_file: TextIO | None,
    questions: tuple[str, ...],
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Answer questions about a text with the promoted adapter."""
    context = _given_context(context, context_file)
    for question in questions:
        _require_text("question", question)
    with _log_on_stderr():
        answerer = _load_answerer(metadata, env, load_versions, params)
        try:
            _ask(answerer, context, questions)
        except click.Abort:  # the input has ended
            click.echo()


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Keep the log off the standard output, which is for answers alone."""
    console = rich.get_console()  # of Kedro's handler, too
    console.stderr, before = True, console.stderr
    try:
        yield
    finally:
        console.stderr = before


def _ask(
    answerer: "flan_qa_pipeline.QuestionAnswerer", context: str | None, questions: tuple[str, ...]
) -> None:
    from flan_qa_pipeline.reporting.run_summary import print_sentences

    if context is None:
        context = str(click.prompt("Context"))
        _require_text("context", context)
    for question in questions:
        if problem := answerer.problem(context, question):
            raise InputError(problem)
    for answer in answerer.answer([(context, question) for question in questions]):
        _print_answer(answer)
    while not questions and (
        question := click.prompt("Question (none ends)", default="", show_default=False)
    ):
        if problem := answerer.problem(context, question):
            print_sentences(problem, stderr=True)
        else:
            _print_answer(answerer.answer([(context, question)])[0])


def _given_context(context: str | None, file: TextIO | None) -> str | None:
    """Return the context of the options, None if they give none.

    Raises:
        InputError: it is empty, or the file is not UTF-8.
    """
    if context is not None and file is not None:
        raise click.UsageError("Give --context or --context-file, not both.")
    if file is not None:
        try:
            context = file.read()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as "
                "UTF-8."
            ) from error
    if context is not None:
        _require_text("context", context)
    return context


def _require_text(name: str, value: str) -> None:
    """Refuse, before a model is loaded, what no model can answer."""
    from flan_qa_pipeline.data.texts import text_problem

    if problem := text_problem(value, f"The {name}"):
        raise InputError(problem)


@loads_adapter
@cli.command()
@click.option("--host", help="Address to listen on, instead of serving.host.")
@click.option("--port", type=int, help="Port to listen on, instead of serving.port.")
@click.pass_obj
def serve(
    metadata: "ProjectMetadata",
    host: str | None,
    port: int | None,
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Serve a web page and an HTTP API that answer with the base and with the promoted adapter."""
    try:
        from flan_qa_pipeline.answering import web_access, web_server
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "fastapi_offline", "uvicorn", "starlette"):
            raise
        raise InputError(
            "serve needs gradio and fastapi-offline, which are not installed; pip install "
            "'flan_qa_pipeline[app]'."
        ) from error
    from kedro.framework.session import KedroSession

    from flan_qa_pipeline.config.validation import check_parameters

    session = KedroSession.create(metadata.project_path, env=env, runtime_params=params)
    with session:
        configuration = session.load_context().config_loader
    raw = configuration["parameters"]
    chosen = {"host": host, "port": port}
    raw["serving"] |= {name: value for name, value in chosen.items() if value is not None}
    settings = check_parameters(raw).serving
    credentials = web_access.Credentials.find(os.environ, _stored_credentials(configuration))
    web_server.check_address(settings)
    web_access.check_access(settings, credentials)
    answerer = _load_answerer(metadata, env, load_versions, params)
    with web_server.WebServer(answerer, settings, credentials) as server:
        click.echo(f"{server.address} answers until Ctrl+C.")
        with suppress(KeyboardInterrupt):
            server.wait()


def _stored_credentials(configuration: "AbstractConfigLoader") -> dict[str, Any]:
    from kedro.config import MissingConfigException

    try:
        return dict(configuration["credentials"])
    except MissingConfigException:  # a project need not have any
        return {}


@cli.command()
@click.argument("version")
@click.pass_obj
def promote(metadata: "ProjectMetadata", version: str, env: str | None) -> None:
    """Make a saved VERSION of the adapter the one that answers.

    The version `shipped` is the adapter that ships with the base.
    """
    from kedro.framework.session import KedroSession

    from flan_qa_pipeline.datasets.promotion import PROMOTED, load_answering_adapter
    from flan_qa_pipeline.reporting.run_summary import print_sentences

    session = KedroSession.create(metadata.project_path, env=env)
    with session:
        catalog = session.load_context().catalog
        promoted = load_answering_adapter(catalog, version, "promoted")
        catalog.save(PROMOTED, version)
    print_sentences(promoted.origin)


promote.params.append(copy(_run_option("env")))


@configured
@cli.command("check-data")
@click.argument("file")
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="The split to check, if the names of a folder's files distinguish several.",
)
@click.pass_obj
def check_data(
    metadata: "ProjectMetadata", file: str, split: str, env: str | None, params: dict[str, Any]
) -> None:
    """Check a file of training questions, without training: counts, lengths, windows, rejects."""
    from kedro.framework.session import KedroSession

    from flan_qa_pipeline.config.validation import check_parameters
    from flan_qa_pipeline.data.profile import profile_questions
    from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
    from flan_qa_pipeline.models.loading import load_tokenizer
    from flan_qa_pipeline.pipelines.data_engineering.nodes import (
        flatten_questions,
        reject_long_questions,
    )
    from flan_qa_pipeline.reporting.profile_tables import profile_tables
    from flan_qa_pipeline.reporting.run_summary import terminal

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
    console = terminal()
    for table in profile_tables(profile, rejected, tokenization):
        console.print(table, "")
    if len(rejected):
        console.print(
            f"{len(rejected):,} rejected: a run stops at the first one, or leaves them out and "
            "lists them with data.on_invalid=skip."
        )


@configured
@cli.command("runs")
@click.pass_obj
def list_runs(metadata: "ProjectMetadata", env: str | None, params: dict[str, Any]) -> None:
    """List all saved versions: parameters that differ, scores, time, memory."""
    from kedro.framework.session import KedroSession

    from flan_qa_pipeline.datasets.promotion import promoted_version
    from flan_qa_pipeline.reporting.run_summary import print_runs
    from flan_qa_pipeline.reporting.runs import runs_page
    from flan_qa_pipeline.runtime import kedro_private
    from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
    from flan_qa_pipeline.runtime.saved_runs import read_runs, scored_versions

    session = KedroSession.create(metadata.project_path, env=env, runtime_params=params)
    with session:
        catalog = cast(AtomicCatalog, session.load_context().catalog)
    runs = read_runs(catalog, scored_versions(catalog), promoted_version(catalog))
    if not runs:
        place = kedro_private.place_of(catalog["score_table"])
        raise InputError(f"No run has saved scores in {place}; make one with `kedro run`.")
    catalog["runs_page"].save(runs_page(runs))
    print_runs(runs)
    click.echo(f"As a page: {kedro_private.load_path(catalog['runs_page'])}")


@loads_adapter
@cli.command()
@click.argument("what", type=click.Choice(["adapter", "merged"]))
@click.option(
    "--repo",
    help="The repository, as OWNER/NAME; without OWNER, your own.  [default: flan-qa-<what>]",
)
@click.option("--private", is_flag=True, help="Make a new repository private; refuse a public one.")
@click.option("--dry-run", is_flag=True, help="List the files and ask nothing of the hub.")
@click.pass_obj
def push(
    metadata: "ProjectMetadata",
    what: str,
    repo: str | None,
    private: bool,
    dry_run: bool,
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Upload the promoted adapter or a merged model to the Hugging Face hub, in one commit.

    The token is HF_TOKEN or that of `hf auth login`.
    """
    from kedro.framework.session import KedroSession

    from flan_qa_pipeline.datasets.promotion import promoted_version
    from flan_qa_pipeline.hub_upload import commit_files, open_repository
    from flan_qa_pipeline.reporting.run_summary import print_sentences
    from flan_qa_pipeline.runtime.sharing import DATASETS, find_shared

    name = repo or f"flan-qa-{what}"
    _require_loaded(load_versions, DATASETS[what])
    session = KedroSession.create(metadata.project_path, env=env, runtime_params=params)
    with session:
        catalog = session.load_context().catalog
        version = load_versions.get(DATASETS[what])
        if version is None and what == "adapter":
            version = promoted_version(catalog)
        shared = find_shared(catalog, what, version)
    for file, content in shared.files(name).items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        click.echo(f"{size:>13,}  {file}")
    if dry_run:
        print_sentences(f"{what} {shared.version} would go to {name}; nothing was uploaded.")
        return
    repo_id = open_repository(name, private=private)
    message = f"Upload {what} {shared.version} of flan_qa_pipeline"
    page = commit_files(repo_id, shared.files(repo_id), message)
    print_sentences(f"{what} {shared.version} is at {page}.")


def _require_loaded(load_versions: dict[str, str], name: str) -> None:
    """Refuse versions of datasets that the command does not load."""
    if unknown := sorted(load_versions.keys() - {name}):
        command = click.get_current_context().info_name
        raise InputError(f"--load-versions names {unknown[0]}; {command} loads nothing but {name}.")


def _load_answerer(
    metadata: "ProjectMetadata",
    env: str | None,
    load_versions: dict[str, str],
    params: dict[str, Any],
) -> "flan_qa_pipeline.QuestionAnswerer":
    _require_loaded(load_versions, "adapter")
    from flan_qa_pipeline import QuestionAnswerer
    from flan_qa_pipeline.reporting.run_summary import print_sentences

    return QuestionAnswerer.from_project(
        metadata.project_path,
        adapter_version=load_versions.get("adapter"),
        env=env,
        runtime_params=params,
        tell=partial(print_sentences, stderr=True),
    )


def _print_answer(answer: "flan_qa_pipeline.Answer") -> None:
    from flan_qa_pipeline.reporting.run_summary import terminal

    console = terminal()
    console.print(
        "no answer in this context" if answer.abstained else answer.text,
        style="bold",
        soft_wrap=not console.is_terminal,  # a program reads the answer as one line
    )
    place = "" if answer.start is None else f", characters {answer.start} to {answer.end}"
    click.secho(
        f"  score {answer.score:.2f}, no-answer probability "
        f"{answer.no_answer_probability:.2f}{place}",
        dim=True,
    )
