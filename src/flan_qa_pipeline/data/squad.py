"""Training questions: the official SQuAD schema, rows, checks, a choice of articles.

Schema and `is_impossible`: Rajpurkar, Jia, Liang 2018, "Know What You Don't Know: Unanswerable
Questions for SQuAD", arXiv:1806.03822.
"""

import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Annotated, Any

from datasets import Dataset, Features, List, Value
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flan_qa_pipeline.data.readers import Columns, Row, SquadJSON, dataset_rows
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.texts import has_text, is_missing, is_unicode, name_problem
from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

SHOWN = 100  # characters of an id in a message
LEAVE_OUT = "--params=data.on_invalid=skip leaves invalid records out"
REQUIRED = ("context", "question", "answers")
OPTIONAL = ("id", "title", "answer_start", "is_impossible")

CHECKED_QUESTION_FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        "is_impossible": Value("bool"),
    }
)


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class SquadAnswer(_Record):
    text: str
    answer_start: int | None = None


class SquadQuestion(_Record):
    id: str
    question: str
    answers: list[SquadAnswer]
    is_impossible: bool = False


class SquadParagraph(_Record):
    context: str
    qas: list[SquadQuestion]


class SquadArticle(_Record):
    title: str
    paragraphs: list[SquadParagraph]


class Squad(_Record):
    """A file in the official SQuAD schema, 2.0 or 1.1; each article is checked when it is read.

    Other keys, such as plausible_answers, are ignored.
    """

    data: list[Any]


class FlatAnswers(_Record):
    text: list[str]
    answer_start: list[int | None]


def _given(value: Any) -> Any:
    """Turn an empty field into None, and a number that serves as an id into its digits."""
    if is_missing(value):
        return None
    return str(value) if type(value) is int else value


class FlatQuestion(_Record):
    """A row in the layout of the Hugging Face dataset `squad_v2`; without answers, unanswerable.

    A row may lack its id, its title and the places of its answers (see `flatten_rows`).
    """

    id: Annotated[str | None, BeforeValidator(_given)] = None
    title: str | None = None
    context: str
    question: str
    answers: FlatAnswers
    is_impossible: Annotated[bool | None, Field(strict=False), BeforeValidator(_given)] = None


@dataclass(frozen=True)
class Rejection:
    """A question, or a paragraph or article with all its questions, that was left out, and why."""

    source: str
    place: str
    id: str
    problem: str


def flatten(
    raw: Mapping[str, Any] | SquadJSON, source: str, rejected: list[Rejection] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one flat record per question: id, title, context, question, answers, is_impossible.

    `answers` is `{"text": [...], "answer_start": [...]}`, offsets in characters of the context.

    Args:
        raw: a document in the official schema, or a file that holds one.
        source: what the user calls it.
        rejected: collects what is not in the schema and is left out; None raises instead.

    Raises:
        InputError: `raw` is not in the official schema; names the place inside `source`.
    """
    articles = enumerate(_articles(raw, source))
    for number, raw_article in articles:
        try:
            article = SquadArticle.model_validate(raw_article)
        except ValidationError as error:
            if rejected is None:
                more = sum(_count_errors(other) for _, other in articles)
                raise _outside_schema(source, error, ("data", number), more) from None
            places = _places(error)
            rejected += [
                Rejection(
                    source,
                    ".".join(map(str, ("data", number, *place))),
                    _id_at(raw_article, place),
                    problem,
                )
                for place, problem in places.items()
            ]
            if () in places:
                continue
            article = SquadArticle.model_validate(_without(raw_article, places))
        for paragraph in article.paragraphs:
            for qa in paragraph.qas:
                yield {
                    "id": qa.id,
                    "title": article.title,
                    "context": paragraph.context,
                    "question": qa.question,
                    "answers": {
                        "text": [answer.text for answer in qa.answers],
                        "answer_start": [answer.answer_start for answer in qa.answers],
                    },
                    "is_impossible": qa.is_impossible,
                }


def _articles(raw: Any, source: str) -> Iterator[Any]:
    rest = raw
    if isinstance(raw, SquadJSON):
        rest = yield from raw.articles()
    try:
        yield from Squad.model_validate(rest).data
    except ValidationError as error:
        raise _outside_schema(source, error) from None


def _count_errors(article: Any) -> int:
    try:
        SquadArticle.model_validate(article)
    except ValidationError as error:
        return error.error_count()
    return 0


def _outside_schema(
    source: str, error: ValidationError, within: tuple[str | int, ...] = (), more: int = 0
) -> InputError:
    leave_out = f"; {LEAVE_OUT}" if within else ""
    return InputError(
        f"{source} is not SQuAD 2.0 JSON: {_first_place(error, within, more)}; the schema is "
        "data[].paragraphs[].qas[] with id, question, answers[].text, answers[].answer_start and "
        f"is_impossible{leave_out}."
    )


def _places(error: ValidationError) -> dict[tuple[str | int, ...], str]:
    """Map the innermost paragraph or question around each problem to its first problem.

    The key () stands for the article itself.
    """
    places: dict[tuple[str | int, ...], str] = {}
    for problem in error.errors():
        place = problem["loc"]
        depth = 0
        while place[depth : depth + 1] in (("paragraphs",), ("qas",)):
            if len(place) < depth + 2:
                break
            depth += 2
        inside = ".".join(str(part) for part in place[depth:])
        places.setdefault(place[:depth], f"{problem['msg']}" + (f" at {inside}" if inside else ""))
    return places


def _id_at(raw: Any, place: Iterable[str | int]) -> str:
    for part in place:
        raw = raw[part]
    return str(raw.get("id", "")) if isinstance(raw, Mapping) else ""


def _without(raw: Any, places: Iterable[tuple[str | int, ...]]) -> Any:
    """Copy nested data without the list items at the given places."""
    inside: dict[str | int, list[tuple[str | int, ...]]] = {}
    for first, *rest in places:
        inside.setdefault(first, []).append(tuple(rest))
    if isinstance(raw, Mapping):
        return {key: _without(value, inside.get(key, ())) for key, value in raw.items()}
    if isinstance(raw, list) and inside:
        items = ((value, inside.get(i, ())) for i, value in enumerate(raw))
        return [_without(value, within) for value, within in items if () not in within]
    return raw


def read_records(
    raw: Mapping[str, Any] | RowFiles | Dataset,
    source: str,
    named: Mapping[str, str],
    rejected: list[Rejection] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one flat record per question of any input, as `flatten` does.

    Args:
        raw: the official schema, or files or a dataset of rows.
        source: what the user calls it.
        named: the column of each field that has another name in the rows.
        rejected: see `flatten`.
    """
    columns = Columns(REQUIRED, OPTIONAL, named)
    if isinstance(raw, Dataset):
        yield from flatten_rows(dataset_rows(raw, source, columns), source, rejected)
    elif isinstance(raw, RowFiles):
        files = raw.find()
        for file, part in zip(files, raw.parts(columns), strict=True):
            name = source if len(files) == 1 else f"{source} ({PurePosixPath(file.path).name})"
            if isinstance(part, SquadJSON):
                yield from flatten(part, name, rejected)
            else:
                yield from flatten_rows(part, name, rejected)
    else:
        yield from flatten(raw, source, rejected)


def flatten_rows(
    rows: Iterable[Row], source: str, rejected: list[Rejection] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows as flat records, like `flatten`.

    Answers are a text, a list of texts, a list of objects or an object of lists (text and
    answer_start), or JSON of these; without any, the question is unanswerable. A row without an id
    gets one from its place, and a row without a title gets one from its context, so that rows with
    the same context form one article.

    Raises:
        InputError: a row has another shape, and `rejected` is None; names the row and the place.
    """
    for place, fields in rows:
        try:
            row = FlatQuestion.model_validate(_with_lists(fields))
        except ValidationError as error:
            if rejected is None:
                raise InputError(
                    f"{source} is not shaped like squad_v2: {place}: {_first_place(error)}; "
                    "the columns are id, title, context, question and answers (texts, or text and "
                    f"answer_start); {LEAVE_OUT}."
                ) from None
            problem = _first_place(error)
            rejected.append(Rejection(source, place, str(fields.get("id", "")), problem))
            continue
        record = row.model_dump()
        if row.id is None:
            record["id"] = f"{place} {_digest(source, place, row.context, row.question)}"
        if not row.title:
            record["title"] = f"untitled {_digest(row.context)}"
        if row.is_impossible is None:
            record["is_impossible"] = not row.answers.text
        yield record


def _digest(*texts: str) -> str:
    text = "\0".join(texts).encode(errors="surrogatepass")
    return blake2b(text, digest_size=8).hexdigest()


def _with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the answers of a row into a list of texts and a list of offsets or None."""
    fields = dict(fields)
    starts = fields.pop("answer_start", None)
    if isinstance(starts, str):  # as CSV has it
        with suppress(ValueError):
            starts = json.loads(starts)
    if "answers" not in fields:
        return fields
    answers = _answers(fields["answers"])
    if starts not in (None, "") and isinstance(answers, dict):
        answers["answer_start"] = starts if isinstance(starts, list) else [starts]
    return fields | {"answers": answers}


def _answers(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):  # a list or an object, as CSV has it
        with suppress(ValueError, RecursionError):
            decoded = json.loads(value)
            texts = decoded if isinstance(decoded, list) else [decoded]
            if all(isinstance(t, str) or (isinstance(t, dict) and "text" in t) for t in texts):
                value = decoded
    if is_missing(value):
        value = []
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        answers = [a if isinstance(a, dict) else {"text": a} for a in value]
        return {key: [answer.get(key) for answer in answers] for key in ("text", "answer_start")}
    if isinstance(value, dict) and "text" in value:
        text, start = value["text"], value.get("answer_start")
        texts = text if isinstance(text, list) else [text]
        if start is None:
            start = [None] * len(texts)
        return {"text": texts, "answer_start": start if isinstance(start, list) else [start]}
    return value


def _first_place(
    error: ValidationError, within: tuple[str | int, ...] = (), elsewhere: int = 0
) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*within, *first["loc"])) or "the top level"
    more = error.error_count() - 1 + elsewhere
    return f"{first['msg']} at {place}" + (f" (and at {more} more places)" if more else "")


def check(
    records: Iterable[Mapping[str, Any]], source: str, rejected: list[Rejection] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Check every flat record: contexts and questions have text, offsets match, ids are unique.

    Yields the good records. An answer without an offset gets the offset of its first occurrence in
    the context. Memory holds only ids.

    Args:
        records: flat records (see `flatten`).
        source: what the user calls their file.
        rejected: collects the bad records; None raises instead.

    Raises:
        InputError: a record is bad, and `rejected` is None; or no record is good.
    """
    good: set[str] = set()
    placed = 0
    for record in records:
        starts = record["answers"]["answer_start"]
        if None in starts:
            record = _with_places(record)
        problem = _problem(record)
        if record["id"] in good:
            problem = "its id occurs more than once; give every question a unique id"
        if problem is None:
            good.add(record["id"])
            placed += starts.count(None)
            yield record
        elif rejected is None:
            raise InputError(
                f"{source}: question {record['id'][:SHOWN]!r}: {problem}; {LEAVE_OUT}."
            )
        else:
            rejected.append(Rejection(source, "", record["id"][:SHOWN], problem))
    if placed:
        logger.info(
            "%s: %d answers without answer_start are placed where they first stand in the context.",
            source,
            placed,
        )
    if rejected and not good:
        raise InputError(
            f"{source} holds no valid questions; of {len(rejected)} that are not, the first: "
            f"{rejected[0].problem}."
        )
    if not good:
        raise InputError(f"{source} holds no questions; give a file with at least one article.")


def _with_places(record: Mapping[str, Any]) -> dict[str, Any]:
    texts, starts = record["answers"]["text"], record["answers"]["answer_start"]
    if len(texts) == len(starts):
        found = map(record["context"].find, texts)
        starts = [
            (place if place >= 0 else None) if start is None else start
            for start, place in zip(starts, found, strict=True)
        ]
    return {**record, "answers": {"text": texts, "answer_start": starts}}


def _problem(record: Mapping[str, Any]) -> str | None:
    context, answers = record["context"], record["answers"]
    for name, thing in ((record["id"], "its id"), (record["title"], "its title")):
        if problem := name_problem(name, thing):
            return problem
    for text in (record["id"], record["title"], record["question"], context, *answers["text"]):
        if not is_unicode(text):
            return f"{text[:40]!r} holds half a surrogate pair, which is no character; remove it"
    if not has_text(context):
        return "its context is empty; remove the paragraph or restore its text"
    if not has_text(record["question"]):
        return "the question is empty; remove it or restore its text"
    if record["is_impossible"] and answers["text"]:
        return "it is marked is_impossible but has answers; clear one of the two"
    if not record["is_impossible"] and not answers["text"]:
        return "it has no answers; add one or mark it is_impossible"
    if len(answers["text"]) != len(answers["answer_start"]):
        return (
            f"it has {len(answers['text'])} answer texts but {len(answers['answer_start'])} "
            "answer_starts; give each answer one"
        )
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if not has_text(text):
            return "an answer is empty; remove it or mark the question is_impossible"
        if start is None:
            return (
                f"the answer {text[:40]!r} does not stand in the context; give it in the words of "
                "the context, or remove it"
            )
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            return (
                f"answer_start {start} points at {found[:40]!r}, not at the answer {text[:40]!r}; "
                "correct the offset (characters from the start of the context)"
            )
    return None


def split_titles(titles: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Pick `fraction` of the distinct article titles (at least one, if the fraction is not 0)."""
    distinct = sorted(set(titles))
    if fraction == 0 or not distinct:
        return set()
    count = max(1, round(len(distinct) * fraction))
    return set(random.Random(seed).sample(distinct, count))  # noqa: S311


def one_line(answers: Iterable[str]) -> str:
    """Join the distinct answers of a question in one line."""
    return " | ".join(dict.fromkeys(answers))


def gold_texts(questions: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Map the id of each flat question to the texts of its answers; unanswerable: no text."""
    return {question["id"]: list(question["answers"]["text"]) for question in questions}
