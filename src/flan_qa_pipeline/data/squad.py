"""SQuAD 2.0 records: the official JSON schema, flat questions, checks, splits by article.

Schema and `is_impossible`: Rajpurkar, Jia, Liang 2018, "Know What You Don't Know: Unanswerable
Questions for SQuAD", arXiv:1806.03822.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flan_qa_pipeline.data.squad_files import SquadJSON
from flan_qa_pipeline.errors import InputError


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class Answer(_Record):
    text: str
    answer_start: int


class Question(_Record):
    id: str
    question: str
    answers: list[Answer]
    is_impossible: bool = False


class Paragraph(_Record):
    context: str
    qas: list[Question]


class Article(_Record):
    title: str
    paragraphs: list[Paragraph]


class Squad(_Record):
    """A file in the official SQuAD 2.0 schema, whose articles are checked one by one.

    Other keys (plausible_answers) are ignored.
    """

    data: list[Any]


class FlatAnswers(_Record):
    text: list[str]
    answer_start: list[int]


class FlatQuestion(_Record):
    """A row of the Hugging Face dataset `squad_v2`; no answers means unanswerable."""

    id: str
    title: str
    context: str
    question: str
    answers: FlatAnswers


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
    With a list `rejected`, what is not in the schema is put there and left out.

    Raises:
        InputError: `raw` is not in the official schema; names the place inside `source`.
    """
    articles = enumerate(_articles(raw, source))
    for number, raw_article in articles:
        try:
            article = Article.model_validate(raw_article)
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
            article = Article.model_validate(_without(raw_article, places))
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
        Article.model_validate(article)
    except ValidationError as error:
        return error.error_count()
    return 0


def _outside_schema(
    source: str, error: ValidationError, within: tuple[str | int, ...] = (), more: int = 0
) -> InputError:
    return InputError(
        f"{source} is not SQuAD 2.0 JSON: {_first_place(error, within, more)}; the schema is "
        "data[].paragraphs[].qas[] with id, question, answers[].text, answers[].answer_start and "
        "is_impossible."
    )


def _places(error: ValidationError) -> dict[tuple[str | int, ...], str]:
    """Map the innermost paragraph or question, or (), around each problem to the first one."""
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


def flatten_rows(
    rows: Iterable[Mapping[str, Any]], source: str, rejected: list[Rejection] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a squad_v2-shaped dataset as flat records, like `flatten`.

    Raises:
        InputError: a row has another shape; names the row and the place in it.
    """
    for number, row in enumerate(rows):
        try:
            record = FlatQuestion.model_validate(row).model_dump()
        except ValidationError as error:
            if rejected is None:
                raise InputError(
                    f"{source} is not shaped like squad_v2: row {number}: {_first_place(error)}; "
                    "the columns are id, title, context, question, answers.text and "
                    "answers.answer_start."
                ) from None
            problem = _first_place(error)
            rejected.append(Rejection(source, f"row {number}", str(row.get("id", "")), problem))
            continue
        yield record | {"is_impossible": not record["answers"]["text"]}


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

    Yields the records that are good: all, or those not put into a list `rejected`. Only ids are
    held in memory.

    Raises:
        InputError: names the first bad record, what is wrong with it, and the remedy; or none is
            good.
    """
    good: set[str] = set()
    for record in records:
        problem = _problem(record)
        if record["id"] in good:
            problem = "its id occurs more than once; give every question an id of its own"
        if problem is None:
            good.add(record["id"])
            yield record
        elif rejected is None:
            raise InputError(f"{source}: question {record['id']!r}: {problem}.")
        else:
            rejected.append(Rejection(source, "", record["id"], problem))
    if rejected and not good:
        raise InputError(
            f"{source} holds no valid questions; of {len(rejected)} that are not, the first: "
            f"{rejected[0].problem}."
        )
    if not good:
        raise InputError(f"{source} holds no questions; give a file with at least one article.")


def _problem(record: Mapping[str, Any]) -> str | None:
    context, answers = record["context"], record["answers"]
    for text in (record["id"], record["title"], record["question"], context, *answers["text"]):
        if not is_unicode(text):
            return f"{text[:40]!r} holds half a surrogate pair, which is no character; remove it"
    if not context.strip():
        return "its context is empty; remove the paragraph or restore its text"
    if not record["question"].strip():
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
        if not text.strip():
            return "an answer is empty; remove it or mark the question is_impossible"
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            return (
                f"answer_start {start} points at {found[:40]!r}, not at the answer {text[:40]!r}; "
                "correct the offset (characters from the start of the context)"
            )
    return None


def is_unicode(text: str) -> bool:
    """Whether the text has only whole characters, no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def split_titles(titles: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Pick `fraction` of the distinct article titles (at least one, if the fraction is not 0)."""
    distinct = sorted(set(titles))
    if fraction == 0 or not distinct:
        return set()
    count = max(1, round(len(distinct) * fraction))
    return set(random.Random(seed).sample(distinct, count))  # noqa: S311


def one_line(answers: Iterable[str]) -> str:
    """The distinct answers of a question in one line."""
    return " | ".join(dict.fromkeys(answers))


def gold_texts(questions: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Map the ids of flat questions to the texts of their answers, none if unanswerable."""
    return {question["id"]: list(question["answers"]["text"]) for question in questions}
