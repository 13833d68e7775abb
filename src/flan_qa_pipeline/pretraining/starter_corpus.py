"""Seeded generator of reading-comprehension data in the SQuAD 2.0 schema.

The text comes from word lists and templates (the "kinds"), so every context, question and
answer is known to be right by construction. One article is about one entity of one kind (a
town, a river, ...) and each of its paragraphs compares that entity with new neighbours of the
same kind, so every answer has distractors of the same type.

The layout of a kinds mapping is described at the top of ``data/01_raw/starter_kinds.yml``.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Maker = Callable[[random.Random], str]

SQUAD_VERSION = "v2.0"
MAX_CONTEXT_WORDS = 100
MIN_SENTENCES = 3
MAX_QUESTIONS_PER_PARAGRAPH = 12
PARAGRAPHS_SEARCHED = 16  # of an article, for the place that an id holds
MIN_ATTRIBUTES = 6
MIN_QUESTIONS = 3

OTHER_ENTITY = "other_entity"
UNSTATED_ATTRIBUTE = "unstated_attribute"
ABSENT_ENTITY = "absent_entity"

_SENTENCE_COUNTS = (3, 3, 3, 3, 4, 4, 5, 6)
_POOL_SIZES = (4, 4, 5, 5)
_BACK_REFERENCE_RATE = 0.3
_PRONOUN_RATE = 0.6
_CONTRAST_RATE = 0.36
_MIXED_CONTRAST_RATE = 0.3
_THIRD_FACT_RATE = 0.05
_SHARED_ATTRIBUTE_RATE = 0.6
_ABSENT_ENTITY_SHARE = 0.06
_VALUE_TRIES = 30
_NAME_TRIES = 300
_PARAGRAPH_TRIES = 60

_POSSESSIVES = {"it": "its", "he": "his", "she": "her"}
_RELATIVES = {"it": "which", "he": "who", "she": "who"}
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
_LAST_SAFE_DAY = 28
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_OF_CLAUSE = re.compile(r"^the [^{}]+ of \{name\} [^{}]*\{value\}[^{}]*$")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One relation of a kind: how to draw its value, state it and ask for it."""

    name: str
    make_value: Maker
    verbs: tuple[str, ...]
    of_clauses: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """Attributes made from one template and a word list; a paragraph uses a few of them."""

    attributes: tuple[Attribute, ...]
    per_paragraph: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A topic kind with its name makers (one per pronoun) and attributes."""

    name: str
    noun: str
    article: str
    subjects: tuple[tuple[str, Maker], ...]
    attributes: tuple[Attribute, ...]
    expansions: tuple[Expansion, ...]


class Entity(NamedTuple):
    """A named thing or person; ``mention`` is the name with its article, if it takes one."""

    name: str
    mention: str
    pronoun: str


class Fact(NamedTuple):
    """A value of an attribute for the paragraph's entity at index ``entity``."""

    entity: int
    attribute: Attribute
    value: str


class Sentence(NamedTuple):
    """A sentence with the facts it states, and whether it names its entity only indirectly."""

    text: str
    facts: tuple[Fact, ...]
    refers_back: bool


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A context with everything that is known about it.

    ``starts`` gives each fact's character offset in ``context``; ``unstated`` holds the
    attributes that the context states for no entity.
    """

    entities: tuple[Entity, ...]
    sentences: tuple[Sentence, ...]
    context: str
    starts: dict[tuple[int, str], int]
    unstated: tuple[Attribute, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All stated facts in reading order."""
        return tuple(fact for sentence in self.sentences for fact in sentence.facts)


class Question(NamedTuple):
    """A question; ``impossible_type`` is "" when the context answers it."""

    text: str
    entity: str
    attribute: str
    answer: str
    answer_start: int
    impossible_type: str


@dataclass(slots=True)
class ImpossibleQuota:
    """Running counts that keep the share and the mix of unanswerable questions on target."""

    fraction: float
    asked: int = 0
    by_type: dict[str, int] = field(
        default_factory=lambda: {OTHER_ENTITY: 0, UNSTATED_ATTRIBUTE: 0, ABSENT_ENTITY: 0}
    )

    def next_count(self, rng: random.Random, n_questions: int) -> int:
        """Return how many of the next ``n_questions`` should be unanswerable."""
        due = round((self.asked + n_questions) * self.fraction) - sum(self.by_type.values())
        if 0.0 < self.fraction < 1.0:
            due += rng.randrange(-1, 2)
        return min(max(due, 0), n_questions)

    def next_types(self, rng: random.Random) -> list[str]:
        """Return the types to try for the next unanswerable question, most wanted first."""
        wanted = [OTHER_ENTITY, UNSTATED_ATTRIBUTE]
        wanted.sort(key=self.by_type.__getitem__)
        if rng.random() < _ABSENT_ENTITY_SHARE:
            wanted.insert(0, ABSENT_ENTITY)
        return wanted


def generate_corpus(
    kinds: dict[str, Any],
    *,
    seed: int,
    n_articles: int,
    paragraphs_per_article: tuple[int, int],
    questions_per_paragraph: tuple[int, int],
    impossible_fraction: float,
) -> dict[str, Any]:
    """Generate a corpus in the official SQuAD 2.0 layout.

    The result depends on the arguments alone. Both ranges are inclusive; an article's kind goes
    round all kinds in turn, so the kinds are equally frequent.

    Args:
        kinds: word lists, value makers and topic kinds (see ``data/01_raw/starter_kinds.yml``).
        seed: seed of the generator's own random numbers.
        n_articles: number of articles, at least 1.
        paragraphs_per_article: fewest and most paragraphs of an article.
        questions_per_paragraph: fewest and most questions of a paragraph, at most 12.
        impossible_fraction: share of unanswerable questions in the corpus, from 0 to 1.

    Raises:
        ValueError: an argument is out of its range, the kinds are malformed, or the word lists
            are too short for a corpus of this size.
    """
    _check_sizes(n_articles, paragraphs_per_article, questions_per_paragraph, impossible_fraction)
    compiled = compile_kinds(kinds)
    rng = random.Random(seed)  # noqa: S311
    used_names: set[str] = set()
    quota = ImpossibleQuota(impossible_fraction)
    order: list[Kind] = []
    articles = []
    for _ in range(n_articles):
        if not order:
            order = rng.sample(compiled, len(compiled))
        kind = order.pop()
        main = new_entity(rng, kind, used_names)
        title = _title(kind, main)
        paragraphs: list[dict[str, Any]] = []
        for _ in range(rng.randint(*paragraphs_per_article)):
            paragraph = write_paragraph(rng, kind, main, used_names)
            n_questions = rng.randint(*questions_per_paragraph)
            questions = ask_questions(rng, kind, paragraph, n_questions, quota, used_names)
            paragraphs.append(
                {
                    "context": paragraph.context,
                    "qas": [
                        _qa(title, len(paragraphs), index, question)
                        for index, question in enumerate(questions)
                    ],
                }
            )
        articles.append({"title": title, "paragraphs": paragraphs})
    return {"version": SQUAD_VERSION, "data": articles}


def _check_sizes(
    n_articles: int,
    paragraphs_per_article: tuple[int, int],
    questions_per_paragraph: tuple[int, int],
    impossible_fraction: float,
) -> None:
    if n_articles < 1:
        raise ValueError(f"n_articles is {n_articles}; give at least 1")
    ranges = {
        "paragraphs_per_article": paragraphs_per_article,
        "questions_per_paragraph": questions_per_paragraph,
    }
    for label, bounds in ranges.items():
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(f"{label} is {bounds}; give (fewest, most) with 1 <= fewest <= most")
    if questions_per_paragraph[1] > MAX_QUESTIONS_PER_PARAGRAPH:
        raise ValueError(
            f"questions_per_paragraph is {questions_per_paragraph}; a paragraph states too few "
            f"facts for more than {MAX_QUESTIONS_PER_PARAGRAPH} questions"
        )
    if not 0.0 <= impossible_fraction <= 1.0:
        raise ValueError(f"impossible_fraction is {impossible_fraction}; give a share from 0 to 1")


def _title(kind: Kind, entity: Entity) -> str:
    return f"{entity.name} ({kind.noun})".replace(" ", "_")


def is_starter_question(title: str, question: str, id_: str) -> bool:
    """Return whether a question comes from `generate_corpus`, as its id shows."""
    return any(
        _question_id(title, paragraph, index, question) == id_
        for paragraph in range(PARAGRAPHS_SEARCHED)
        for index in range(MAX_QUESTIONS_PER_PARAGRAPH)
    )


def _question_id(title: str, paragraph_index: int, index: int, question: str) -> str:
    key = f"{title}\n{paragraph_index}\n{index}\n{question}"
    return hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[:24]


def _qa(title: str, paragraph_index: int, index: int, question: Question) -> dict[str, Any]:
    answers = (
        []
        if question.impossible_type
        else [{"text": question.answer, "answer_start": question.answer_start}]
    )
    return {
        "id": _question_id(title, paragraph_index, index, question.text),
        "question": question.text,
        "is_impossible": bool(question.impossible_type),
        "answers": answers,
    }


# Compiling the kinds


def compile_kinds(kinds: Mapping[str, Any]) -> list[Kind]:
    """Check a kinds mapping and compile its templates.

    Raises:
        ValueError: something is missing or malformed; the message names the kind and attribute.
    """
    entries = _mapping(kinds, "kinds", "the kinds file")
    makers = _Makers(kinds)
    return [_compile_kind(name, spec, makers) for name, spec in entries.items()]


class _Makers:
    """Makers of the named lists, names and values, compiled when first asked for."""

    def __init__(self, kinds: Mapping[str, Any]) -> None:
        self.lists: dict[str, list[str]] = dict(kinds.get("lists") or {})
        self._specs: dict[str, tuple[str, Any]] = {}
        for section in ("lists", "names", "values"):
            for name, spec in (kinds.get(section) or {}).items():
                if name in self._specs:
                    raise ValueError(
                        f"{name!r} is in both {self._specs[name][0]!r} and {section!r}; rename one"
                    )
                self._specs[name] = (section, spec)
        self._compiled: dict[str, Maker] = {}
        self._open: list[str] = []

    def get(self, name: str, where: str) -> Maker:
        """Return the maker called ``name``; ``where`` says who asks, for error messages."""
        if name in self._compiled:
            return self._compiled[name]
        if name not in self._specs:
            raise ValueError(f"{where}: unknown {name!r}; add it to lists, names or values")
        if name in self._open:
            raise ValueError(f"{where}: {name!r} refers to itself; break the circle")
        self._open.append(name)
        section, spec = self._specs[name]
        where = f"{section} {name!r}"
        if section == "lists":
            maker = _list_maker(_texts(spec, where))
        elif section == "names":
            maker = _capitalised(self._text_maker(_texts(spec, where), where))
        else:
            maker = self._value_maker(spec, where)
        self._open.pop()
        self._compiled[name] = maker
        return maker

    def _text_maker(self, patterns: list[str], where: str) -> Maker:
        makers = [self._pattern_maker(pattern, where) for pattern in patterns]
        if len(makers) == 1:
            return makers[0]
        return lambda rng: _pick(rng, makers)(rng)

    def _pattern_maker(self, pattern: str, where: str) -> Maker:
        pieces = _PLACEHOLDER.split(pattern)
        names = pieces[1::2]
        makers = [self.get(name, where) for name in names]
        if pieces[::2] == ["", ""]:
            return makers[0]
        template = _PLACEHOLDER.sub("%s", pattern.replace("%", "%%"))
        return lambda rng: template % tuple([maker(rng) for maker in makers])

    def _value_maker(self, spec: Any, where: str) -> Maker:
        spec = _mapping({"spec": spec}, "spec", where)
        for key in ("integer", "decimal", "date"):
            bounds = spec.get(key)
            if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
                raise ValueError(f"{where}: {key} is {bounds}; give [lowest, highest]")
        if "integer" in spec:
            return _integer_maker(spec)
        if "decimal" in spec:
            return _decimal_maker(spec)
        if "date" in spec:
            return _date_maker(*spec["date"])
        if "text" in spec:
            return self._text_maker(_texts(spec["text"], where), where)
        raise ValueError(f"{where}: give one of integer, decimal, date or text")


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _list_maker(words: list[str]) -> Maker:
    return lambda rng: _pick(rng, words)


def _capitalised(maker: Maker) -> Maker:
    return lambda rng: _capital(maker(rng))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _integer_maker(spec: Mapping[str, Any]) -> Maker:
    low, high = spec["integer"]
    step = spec.get("step", 1)
    steps = (high - low) // step + 1
    number = "{number:,}" if spec.get("commas") else "{number}"
    template = spec.get("text", "{number}").replace("{number}", number)
    return lambda rng: template.format(number=low + step * int(rng.random() * steps))


def _decimal_maker(spec: Mapping[str, Any]) -> Maker:
    low, high = (round(10 * bound) for bound in spec["decimal"])
    template = spec.get("text", "{number}").replace("{number}", "{number:.1f}")
    return lambda rng: template.format(number=rng.randint(low, high) / 10)


def _date_maker(first_year: int, last_year: int) -> Maker:
    def make(rng: random.Random) -> str:
        day = 1 + int(rng.random() * _LAST_SAFE_DAY)
        year = first_year + int(rng.random() * (last_year - first_year + 1))
        return f"{day} {_pick(rng, _MONTHS)} {year}"

    return make


def _mapping(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{where}: {key!r} is missing or empty; give a mapping")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: give a list with at least one text, not {value!r}")
    for text in value:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{where}: {text!r} is not a text; put it in quotes")
    return value


def _compile_kind(name: str, spec: Any, makers: _Makers) -> Kind:
    where = f"kind {name!r}"
    if not isinstance(spec, Mapping) or not isinstance(spec.get("noun"), str):
        raise ValueError(f"{where}: 'noun' is missing; give the word for one of them")
    subjects = []
    for pronoun, name_maker in _mapping(spec, "subjects", where).items():
        if pronoun not in _POSSESSIVES:
            raise ValueError(f"{where}: pronoun {pronoun!r} is not one of {list(_POSSESSIVES)}")
        subjects.append((pronoun, makers.get(name_maker, where)))
    attributes: list[Attribute] = []
    expansions: list[Expansion] = []
    for attribute_name, attribute in _mapping(spec, "attributes", where).items():
        at = f"{where}, attribute {attribute_name!r}"
        if not isinstance(attribute, Mapping):
            raise ValueError(f"{at}: give a mapping with value, verbs and questions")
        if "expand" in attribute:
            expansions.append(_compile_expansion(attribute_name, attribute, makers, at))
        else:
            attributes.append(_compile_attribute(attribute_name, attribute, makers, at, ""))
    expanded = [attribute for expansion in expansions for attribute in expansion.attributes]
    _check_templates_differ(where, attributes + expanded)
    usable = len(attributes) + sum(expansion.per_paragraph for expansion in expansions)
    if usable < MIN_ATTRIBUTES:
        raise ValueError(f"{where}: {usable} attributes; give at least {MIN_ATTRIBUTES}")
    article = f"{spec['article']} " if "article" in spec else ""
    return Kind(name, spec["noun"], article, tuple(subjects), tuple(attributes), tuple(expansions))


def _check_templates_differ(where: str, attributes: Sequence[Attribute]) -> None:
    """Refuse a statement or question of two attributes: it would not say which one is meant."""
    seen: dict[str, str] = {}
    for attribute in attributes:
        for template in attribute.verbs + attribute.of_clauses + attribute.questions:
            other = seen.setdefault(template, attribute.name)
            if other != attribute.name:
                raise ValueError(
                    f"{where}, attribute {attribute.name!r}: {template!r} also belongs to "
                    f"{other!r}; reword one of them"
                )


def _compile_expansion(
    name: str, spec: Mapping[str, Any], makers: _Makers, where: str
) -> Expansion:
    words = makers.lists.get(spec["expand"])
    if words is None:
        raise ValueError(f"{where}: unknown list {spec['expand']!r} to expand; add it to lists")
    per_paragraph = spec.get("per_paragraph", 0)
    if not 1 <= per_paragraph <= len(words):
        raise ValueError(f"{where}: per_paragraph is {per_paragraph}; give 1 to {len(words)}")
    attributes = tuple(
        _compile_attribute(f"{name} {word}", spec, makers, where, word)
        for word in _texts(words, where)
    )
    return Expansion(attributes, per_paragraph)


def _compile_attribute(
    name: str, spec: Mapping[str, Any], makers: _Makers, where: str, word: str
) -> Attribute:
    if not isinstance(spec.get("value"), str):
        raise ValueError(f"{where}: 'value' is missing; name a list, name or value")
    known = {"verbs": {"value", "its", "a"}, "of": {"name", "value"}, "questions": {"name"}}
    required = {"verbs": "{value}", "of": "{value}", "questions": "{name}"}
    templates: dict[str, tuple[str, ...]] = {"of": ()}
    for key in ("verbs", "of", "questions"):
        if key == "of" and key not in spec:
            continue
        texts = [
            text.replace("{word}", word) if word else text
            for text in _texts(spec.get(key), f"{where}: {key!r}")
        ]
        for text in texts:
            unknown = set(_PLACEHOLDER.findall(text)) - known[key]
            if unknown:
                raise ValueError(
                    f"{where}: unknown placeholder {sorted(unknown)} in {text!r}; "
                    f"{key} may use {sorted(known[key])}"
                )
            if text.count(required[key]) != 1:
                raise ValueError(f"{where}: {text!r} must hold {required[key]} exactly once")
            if key == "of" and not _OF_CLAUSE.match(text):
                raise ValueError(
                    f"{where}: {text!r} must look like 'the height of {{name}} is {{value}}'"
                )
            if key == "questions" and not text.endswith("?"):
                raise ValueError(f"{where}: {text!r} must end with a question mark")
        if key == "questions" and len(set(texts)) < MIN_QUESTIONS:
            raise ValueError(f"{where}: give at least {MIN_QUESTIONS} different questions")
        templates[key] = tuple(texts)
    make_value = makers.get(spec["value"], where)
    return Attribute(name, make_value, templates["verbs"], templates["of"], templates["questions"])


# Writing paragraphs


def new_entity(
    rng: random.Random, kind: Kind, used_names: set[str], others: Sequence[Entity] = ()
) -> Entity:
    """Draw an entity whose name is new to the corpus and record its name as used.

    The name neither contains nor is contained in the names of ``others``.

    Raises:
        ValueError: the kind's word lists hardly hold a new name any more.
    """
    pronoun, make_name = _pick(rng, kind.subjects)
    for _ in range(_NAME_TRIES):
        name = make_name(rng)
        key = name.lower()
        if key in used_names:
            continue
        if any(name in other.name or other.name in name for other in others):
            continue
        used_names.add(key)
        return Entity(name, kind.article + name, pronoun)
    raise ValueError(
        f"kind {kind.name!r}: found no new name in {_NAME_TRIES} tries; "
        "add words to the lists of its name pattern"
    )


def write_paragraph(
    rng: random.Random, kind: Kind, main: Entity, used_names: set[str]
) -> Paragraph:
    """Write a paragraph about ``main`` and one or two new entities of its kind.

    Raises:
        ValueError: no draw kept the answers unambiguous, or new names ran out.
    """
    entities = [main, new_entity(rng, kind, used_names, [main])]
    if rng.random() < 0.5:
        entities.append(new_entity(rng, kind, used_names, entities))
    for _ in range(_PARAGRAPH_TRIES):
        paragraph = _try_paragraph(rng, kind, tuple(entities))
        if paragraph is not None:
            return paragraph
    raise ValueError(
        f"kind {kind.name!r}: no unambiguous paragraph in {_PARAGRAPH_TRIES} tries; "
        "add words to the lists of its values"
    )


def _try_paragraph(
    rng: random.Random, kind: Kind, entities: tuple[Entity, ...]
) -> Paragraph | None:
    candidates = _candidate_attributes(rng, kind)
    size = min(_pick(rng, _POOL_SIZES), len(candidates) - 2)
    plans = _plan_sentences(rng, candidates[:size], len(entities))
    if len(plans) < MIN_SENTENCES or len({entity for plan in plans for entity in plan}) < len(
        entities
    ):
        return None
    values: set[str] = set()
    sentences = []
    for index, plan in enumerate(plans):
        facts = []
        for entity, attributes in plan.items():
            for attribute in attributes:
                value = _new_value(rng, attribute, values)
                if value is None:
                    return None
                facts.append(Fact(entity, attribute, value))
        refers_back = index > 0 and len(plan) == 1 and plan.keys() == plans[index - 1].keys()
        if len(plan) == 1:
            text = _sentence_about_one(rng, kind, entities[facts[0].entity], facts, refers_back)
        else:
            text = _sentence_about_two(rng, entities, facts)
        sentences.append(Sentence(_capital(text) + ".", tuple(facts), refers_back))
    context = " ".join(sentence.text for sentence in sentences)
    if context.count(" ") >= MAX_CONTEXT_WORDS:
        return None
    starts = _answer_starts(context, sentences)
    if starts is None:
        return None
    stated = {name for _, name in starts}
    unstated = tuple(attribute for attribute in candidates if attribute.name not in stated)
    return Paragraph(entities, tuple(sentences), context, starts, unstated)


def _candidate_attributes(rng: random.Random, kind: Kind) -> list[Attribute]:
    candidates = list(kind.attributes)
    for expansion in kind.expansions:
        candidates += rng.sample(expansion.attributes, expansion.per_paragraph)
    rng.shuffle(candidates)
    return candidates


def _plan_sentences(
    rng: random.Random, pool: list[Attribute], n_entities: int
) -> list[dict[int, list[Attribute]]]:
    """Plan which entity's attributes each sentence states, at most one statement of each.

    A sentence about the same single entity as the one before it refers back to that entity.
    """
    missing = [list(pool) for _ in range(n_entities)]
    stated: set[str] = set()
    plans: list[dict[int, list[Attribute]]] = []

    def take(entity: int, attribute: Attribute | None = None) -> Attribute:
        left = missing[entity]
        if attribute is None:
            shared = [option for option in left if option.name in stated]
            use_shared = shared and rng.random() < _SHARED_ATTRIBUTE_RATE
            attribute = _pick(rng, shared if use_shared else left)
        left.remove(attribute)
        stated.add(attribute.name)
        return attribute

    for index in range(_pick(rng, _SENTENCE_COUNTS)):
        previous = next(iter(plans[-1])) if plans and len(plans[-1]) == 1 else None
        by_need = sorted(range(n_entities), key=lambda e: (-len(missing[e]), rng.random()))
        if index == 0:
            by_need.remove(0)
            by_need.insert(0, 0)
        elif previous is not None:
            by_need.remove(previous)
            if len(missing[previous]) >= 2 and rng.random() < _BACK_REFERENCE_RATE:
                by_need.insert(0, previous)
        first = by_need[0]
        about_previous = first == previous
        others = [entity for entity in by_need if entity != first and missing[entity]]
        if (
            not about_previous
            and others
            and missing[first]
            and (len(missing[first]) < 2 or rng.random() < _CONTRAST_RATE)
        ):
            second = others[0]
            attribute = take(first)
            same = attribute in missing[second] and rng.random() >= _MIXED_CONTRAST_RATE
            plans.append({first: [attribute], second: [take(second, attribute if same else None)]})
        elif len(missing[first]) >= 2:
            n_facts = 3 if len(missing[first]) > 2 and rng.random() < _THIRD_FACT_RATE else 2
            plans.append({first: [take(first) for _ in range(n_facts)]})
        else:
            break
    return plans


def _new_value(rng: random.Random, attribute: Attribute, values: set[str]) -> str | None:
    for _ in range(_VALUE_TRIES):
        value = attribute.make_value(rng)
        key = value.lower()
        if key not in values:
            values.add(key)
            return value
    return None


def _verb(rng: random.Random, entity: Entity, fact: Fact) -> str:
    template = _pick(rng, fact.attribute.verbs)
    article = "an" if fact.value[0].lower() in "aeiou" else "a"
    return (
        template.replace("{its}", _POSSESSIVES[entity.pronoun])
        .replace("{a}", article)
        .replace("{value}", fact.value)
    )


def _of(rng: random.Random, mention: str, fact: Fact) -> str:
    template = _pick(rng, fact.attribute.of_clauses)
    return template.replace("{name}", mention).replace("{value}", fact.value)


def _own(rng: random.Random, entity: Entity, fact: Fact) -> str:
    """Turn "the mayor of {name} is {value}" into "its mayor is ..."."""
    template = _pick(rng, fact.attribute.of_clauses)
    own = _POSSESSIVES[entity.pronoun] + template[3:].replace(" of {name}", "", 1)
    return own.replace("{value}", fact.value)


def _sentence_about_one(
    rng: random.Random, kind: Kind, entity: Entity, facts: list[Fact], refers_back: bool
) -> str:
    pronoun = entity.pronoun
    subject = entity.mention
    if refers_back:
        subject = pronoun if rng.random() < _PRONOUN_RATE else f"the {kind.noun}"
    first, second = facts[:2]
    if len(facts) == 3:
        list_end = f"{_verb(rng, entity, second)} and {_verb(rng, entity, facts[2])}"
        if refers_back or rng.random() < 0.5:
            return f"{subject} {_verb(rng, entity, first)}, {list_end}"
        return f"{subject}, {_RELATIVES[pronoun]} {_verb(rng, entity, first)}, {list_end}"
    joins = ["and", "semicolon"]
    if not refers_back:
        joins += ["relative", "relative"]
    if second.attribute.of_clauses:
        joins.append("own second")
    if first.attribute.of_clauses:
        joins += ["of first", "of first"]
    join = _pick(rng, joins)
    if join == "and":
        return f"{subject} {_verb(rng, entity, first)} and {_verb(rng, entity, second)}"
    if join == "semicolon":
        return f"{subject} {_verb(rng, entity, first)}; {pronoun} {_verb(rng, entity, second)}"
    if join == "relative":
        relative = f"{_RELATIVES[pronoun]} {_verb(rng, entity, first)}"
        return f"{subject}, {relative}, {_verb(rng, entity, second)}"
    if join == "own second":
        return f"{subject} {_verb(rng, entity, first)}, and {_own(rng, entity, second)}"
    start = _own(rng, entity, first) if subject == pronoun else _of(rng, subject, first)
    if second.attribute.of_clauses and rng.random() < 0.5:
        return f"{start}, and {_own(rng, entity, second)}"
    return f"{start}, and {pronoun} {_verb(rng, entity, second)}"


def _sentence_about_two(rng: random.Random, entities: tuple[Entity, ...], facts: list[Fact]) -> str:
    first, second = facts
    one, two = entities[first.entity], entities[second.entity]
    joins = ["while", "and"]
    if first.attribute is second.attribute:
        joins += ["but", "unlike"]
    if first.attribute.of_clauses and second.attribute.of_clauses:
        joins += ["of while", "of and"]
    join = _pick(rng, joins)
    if join == "unlike":
        relative = f"{two.mention}, {_RELATIVES[two.pronoun]} {_verb(rng, two, second)}"
        return f"unlike {relative}, {one.mention} {_verb(rng, one, first)}"
    if join.startswith("of "):
        start, end = _of(rng, one.mention, first), _of(rng, two.mention, second)
        return f"{start}, {join[3:]} {end}"
    start = f"{one.mention} {_verb(rng, one, first)}"
    return f"{start}, {join} {two.mention} {_verb(rng, two, second)}"


def _answer_starts(context: str, sentences: list[Sentence]) -> dict[tuple[int, str], int] | None:
    """Return each fact's offset in the context, or None when a value occurs more than once."""
    folded = context.lower()
    starts = {}
    for sentence in sentences:
        for entity, attribute, value in sentence.facts:
            start = only_occurrence(folded, value.lower())
            if start is None:
                return None
            starts[entity, attribute.name] = start
    return starts


def only_occurrence(text: str, phrase: str) -> int | None:
    """Return the offset of ``phrase`` in ``text`` if it occurs once as whole words, else None."""
    found = None
    start = text.find(phrase)
    while start != -1:
        end = start + len(phrase)
        starts_word = start == 0 or not text[start - 1].isalnum()
        ends_word = end == len(text) or not text[end].isalnum()
        if starts_word and ends_word:
            if found is not None:
                return None
            found = start
        start = text.find(phrase, start + 1)
    return found


# Asking questions


def ask_questions(
    rng: random.Random,
    kind: Kind,
    paragraph: Paragraph,
    n_questions: int,
    quota: ImpossibleQuota,
    used_names: set[str],
) -> list[Question]:
    """Ask different questions about a paragraph, answerable and not, in random order.

    ``quota`` says how many are unanswerable and of which type, and is updated. No text is asked
    twice; a paragraph with few facts asks for the same one again in other words.
    """
    n_impossible = quota.next_count(rng, n_questions)
    asked: set[str] = set()
    questions: list[Question] = []
    facts = rng.sample(paragraph.facts, len(paragraph.facts))
    for index in range(n_questions - n_impossible):
        entity, attribute, value = facts[index % len(facts)]
        text = _ask(rng, attribute, paragraph.entities[entity], asked)
        start = paragraph.starts[entity, attribute.name]
        name = paragraph.entities[entity].name
        questions.append(Question(text, name, attribute.name, value, start, ""))
    gaps = _gaps(rng, paragraph)
    for _ in range(n_impossible):
        impossible_type = next(name for name in quota.next_types(rng) if gaps.get(name, True))
        if impossible_type == ABSENT_ENTITY:
            entity_asked = new_entity(rng, kind, used_names, paragraph.entities)
            attribute = _pick(rng, facts).attribute
        else:
            index, attribute = gaps[impossible_type].pop()
            if impossible_type == UNSTATED_ATTRIBUTE:
                gaps[impossible_type].insert(0, (index, attribute))
            entity_asked = paragraph.entities[index]
        quota.by_type[impossible_type] += 1
        text = _ask(rng, attribute, entity_asked, asked)
        questions.append(Question(text, entity_asked.name, attribute.name, "", -1, impossible_type))
    quota.asked += n_questions
    rng.shuffle(questions)
    return questions


def _ask(rng: random.Random, attribute: Attribute, entity: Entity, asked: set[str]) -> str:
    """Put a question in words not asked yet, and record it."""
    for template in rng.sample(attribute.questions, len(attribute.questions)):
        text = _capital(template.replace("{name}", entity.mention))
        if text not in asked:
            asked.add(text)
            return text
    raise ValueError(f"attribute {attribute.name!r}: add questions; all of them are asked")


def _gaps(rng: random.Random, paragraph: Paragraph) -> dict[str, list[tuple[int, Attribute]]]:
    """Return, by type, the (entity, attribute) pairs that the context does not state."""
    entities = range(len(paragraph.entities))
    stated = {fact.attribute.name: fact.attribute for fact in paragraph.facts}
    gaps = {
        OTHER_ENTITY: [
            (entity, attribute)
            for entity in entities
            for attribute in stated.values()
            if (entity, attribute.name) not in paragraph.starts
        ],
        UNSTATED_ATTRIBUTE: [
            (entity, attribute) for entity in entities for attribute in paragraph.unstated
        ],
    }
    for pairs in gaps.values():
        rng.shuffle(pairs)
    return gaps
