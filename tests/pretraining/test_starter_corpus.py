"""Tests of the starter corpus generator and of the two kinds files it ships with."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from flan_qa_pipeline.pretraining import starter_corpus
from flan_qa_pipeline.pretraining.starter_corpus import (
    ABSENT_ENTITY,
    OTHER_ENTITY,
    UNSTATED_ATTRIBUTE,
    ImpossibleQuota,
    Kind,
    Paragraph,
    Question,
    ask_questions,
    compile_kinds,
    generate_corpus,
    new_entity,
    only_occurrence,
    write_paragraph,
)

ROOT = Path(__file__).parents[2]
KINDS_FILES = {
    name: ROOT / "data" / "01_raw" / f"{name}_kinds.yml" for name in ("starter", "pretraining")
}
SIZES = {
    "n_articles": 96,
    "paragraphs_per_article": (2, 4),
    "questions_per_paragraph": (3, 6),
}
IMPOSSIBLE_FRACTION = {"starter": 0.35, "pretraining": 0.0}


def make_paragraphs(
    kinds: list[Kind], seed: int, n_per_kind: int, fraction: float, n_questions: int = 6
) -> list[tuple[Kind, Paragraph, list[Question]]]:
    rng = random.Random(seed)  # noqa: S311
    used_names: set[str] = set()
    quota = ImpossibleQuota(fraction)
    made = []
    for kind in kinds:
        for _ in range(n_per_kind):
            main = new_entity(rng, kind, used_names)
            paragraph = write_paragraph(rng, kind, main, used_names)
            questions = ask_questions(rng, kind, paragraph, n_questions, quota, used_names)
            made.append((kind, paragraph, questions))
    return made


def contexts_of(corpus: dict[str, Any]) -> list[str]:
    return [item["context"] for article in corpus["data"] for item in article["paragraphs"]]


def questions_of(corpus: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        question
        for article in corpus["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def statements_of(kind: Kind) -> set[str]:
    attributes = list(kind.attributes)
    for expansion in kind.expansions:
        attributes += expansion.attributes
    return {text for item in attributes for text in item.verbs + item.of_clauses}


@pytest.fixture(scope="module")
def all_kinds() -> dict[str, dict[str, Any]]:
    return {
        name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in KINDS_FILES.items()
    }


@pytest.fixture(scope="module")
def corpora(all_kinds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: generate_corpus(kinds, seed=5, impossible_fraction=IMPOSSIBLE_FRACTION[name], **SIZES)
        for name, kinds in all_kinds.items()
    }


@pytest.fixture(scope="module")
def compiled(all_kinds: dict[str, dict[str, Any]]) -> dict[str, list[Kind]]:
    return {name: compile_kinds(kinds) for name, kinds in all_kinds.items()}


@pytest.fixture(scope="module")
def paragraphs(
    compiled: dict[str, list[Kind]],
) -> list[tuple[Kind, Paragraph, list[Question]]]:
    return make_paragraphs(compiled["starter"], 3, 30, 0.5) + make_paragraphs(
        compiled["pretraining"], 4, 15, 0.5
    )


@pytest.fixture
def small_kinds() -> dict[str, Any]:
    attributes = {
        f"size{index}": {
            "value": "number",
            "verbs": [f"has a size{index} of {{value}}"],
            "of": [f"the size{index} of {{name}} is {{value}}"],
            "questions": [
                f"What is the size{index} of {{name}}?",
                f"How big is the size{index} of {{name}}?",
                f"Which size{index} does {{name}} have?",
            ],
        }
        for index in range(6)
    }
    return {
        "lists": {
            "start": ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"],
            "end": ["ia", "or", "um", "esk"],
        },
        "names": {"name": ["{start}{start}{start}{end}"]},
        "values": {"number": {"integer": [1000, 99000]}},
        "kinds": {"stone": {"noun": "stone", "subjects": {"it": "name"}, "attributes": attributes}},
    }


def generate_small(kinds: dict[str, Any], **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "seed": 1,
        "n_articles": 5,
        "paragraphs_per_article": (1, 2),
        "questions_per_paragraph": (2, 4),
        "impossible_fraction": 0.3,
    }
    return generate_corpus(kinds, **(arguments | changes))


# The whole corpus


def corpus_hash_in_new_process(hash_seed: str) -> str:
    code = (
        "import hashlib, json, sys, yaml\n"
        "from flan_qa_pipeline.pretraining.starter_corpus import generate_corpus\n"
        "kinds = yaml.safe_load(open(sys.argv[1], encoding='utf-8'))\n"
        "corpus = generate_corpus(kinds, seed=9, n_articles=40, paragraphs_per_article=(1, 3),\n"
        "    questions_per_paragraph=(2, 5), impossible_fraction=0.4)\n"
        "print(hashlib.sha256(json.dumps(corpus).encode()).hexdigest())\n"
    )
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, str(KINDS_FILES["starter"])],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_same_seed_gives_the_same_bytes_in_any_process(
    all_kinds: dict[str, dict[str, Any]],
) -> None:
    random.seed(123)
    here = generate_corpus(
        all_kinds["starter"],
        seed=9,
        n_articles=40,
        paragraphs_per_article=(1, 3),
        questions_per_paragraph=(2, 5),
        impossible_fraction=0.4,
    )
    expected = hashlib.sha256(json.dumps(here).encode()).hexdigest()
    assert corpus_hash_in_new_process("1") == expected
    assert corpus_hash_in_new_process("2") == expected


def test_global_random_state_is_left_alone(small_kinds: dict[str, Any]) -> None:
    random.seed(7)
    before = random.getstate()
    generate_small(small_kinds)
    assert random.getstate() == before


def test_different_seeds_differ(small_kinds: dict[str, Any]) -> None:
    first = set(contexts_of(generate_small(small_kinds, seed=1)))
    second = set(contexts_of(generate_small(small_kinds, seed=2)))
    assert not first & second


def test_kinds_are_not_changed(small_kinds: dict[str, Any]) -> None:
    before = copy.deepcopy(small_kinds)
    generate_small(small_kinds)
    assert small_kinds == before


@pytest.mark.parametrize("name", KINDS_FILES)
def test_corpus_has_the_squad_schema(corpora: dict[str, dict[str, Any]], name: str) -> None:
    corpus = corpora[name]
    assert set(corpus) == {"version", "data"}
    assert corpus["version"] == "v2.0"
    assert len(corpus["data"]) == SIZES["n_articles"]
    for article in corpus["data"]:
        assert set(article) == {"title", "paragraphs"}
        assert 2 <= len(article["paragraphs"]) <= 4
        for paragraph in article["paragraphs"]:
            assert set(paragraph) == {"context", "qas"}
            assert 3 <= len(paragraph["qas"]) <= 6
            for question in paragraph["qas"]:
                assert set(question) == {"id", "question", "is_impossible", "answers"}
                assert question["question"].endswith("?")
                assert question["question"][0].isupper()
                assert len(question["answers"]) == (0 if question["is_impossible"] else 1)
    assert json.loads(json.dumps(corpus)) == corpus


@pytest.mark.parametrize("name", KINDS_FILES)
def test_answers_are_exact_and_occur_once(corpora: dict[str, dict[str, Any]], name: str) -> None:
    checked = 0
    for article in corpora[name]["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for question in paragraph["qas"]:
                for answer in question["answers"]:
                    text, start = answer["text"], answer["answer_start"]
                    assert context[start : start + len(text)] == text
                    whole = rf"(?<!\w){re.escape(text)}(?!\w)"
                    assert len(re.findall(whole, context, re.IGNORECASE)) == 1, (text, context)
                    checked += 1
    assert checked > 500


@pytest.mark.parametrize("name", KINDS_FILES)
def test_ids_titles_and_contexts_are_unique(corpora: dict[str, dict[str, Any]], name: str) -> None:
    ids = [question["id"] for question in questions_of(corpora[name])]
    titles = [article["title"] for article in corpora[name]["data"]]
    contexts = contexts_of(corpora[name])
    for values in (ids, titles, contexts):
        assert len(set(values)) == len(values)
    assert all(re.fullmatch(r"[^ ]+_\([a-z_]+\)", title) for title in titles)


@pytest.mark.parametrize("name", KINDS_FILES)
def test_the_main_entity_of_an_article_is_in_no_other_article(
    corpora: dict[str, dict[str, Any]], name: str
) -> None:
    texts = {
        article["title"]: " ".join(paragraph["context"] for paragraph in article["paragraphs"])
        for article in corpora[name]["data"]
    }
    for title in texts:
        entity = title[: title.rindex("_(")].replace("_", " ")
        owners = {
            other for other, text in texts.items() if re.search(rf"\b{re.escape(entity)}\b", text)
        }
        assert title in owners
        same_kind = {other for other in owners if other.endswith(title[title.rindex("_(") :])}
        assert same_kind == {title}


def test_no_question_is_asked_twice_in_a_paragraph(corpora: dict[str, dict[str, Any]]) -> None:
    for corpus in corpora.values():
        for article in corpus["data"]:
            for paragraph in article["paragraphs"]:
                texts = [question["question"] for question in paragraph["qas"]]
                assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", KINDS_FILES)
def test_contexts_are_short(corpora: dict[str, dict[str, Any]], name: str) -> None:
    lengths = [len(context.split()) for context in contexts_of(corpora[name])]
    assert max(lengths) <= 100
    assert 50 <= sum(lengths) / len(lengths) <= 70


def test_all_kinds_are_equally_frequent(
    corpora: dict[str, dict[str, Any]], compiled: dict[str, list[Kind]]
) -> None:
    for name, corpus in corpora.items():
        counts = Counter(re.search(r"_\((.+)\)$", a["title"])[1] for a in corpus["data"])
        assert set(counts) == {kind.noun.replace(" ", "_") for kind in compiled[name]}
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_impossible_share_is_met(small_kinds: dict[str, Any], fraction: float) -> None:
    corpus = generate_small(small_kinds, n_articles=100, impossible_fraction=fraction)
    questions = questions_of(corpus)
    share = sum(question["is_impossible"] for question in questions) / len(questions)
    assert share == pytest.approx(fraction, abs=0.0 if fraction in (0.0, 1.0) else 0.015)


def test_full_size_of_questions_is_reached(small_kinds: dict[str, Any]) -> None:
    for fraction in (0.0, 0.5, 1.0):
        corpus = generate_small(
            small_kinds, questions_per_paragraph=(12, 12), impossible_fraction=fraction
        )
        for article in corpus["data"]:
            assert [len(paragraph["qas"]) for paragraph in article["paragraphs"]] == [12] * len(
                article["paragraphs"]
            )


# What paragraphs and questions mean


def test_paragraphs_have_the_planned_shape(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    for _, paragraph, _ in paragraphs:
        assert 3 <= len(paragraph.sentences) <= 6
        assert 2 <= len(paragraph.entities) <= 3
        assert all(len(sentence.facts) >= 2 for sentence in paragraph.sentences)
        assert {fact.entity for fact in paragraph.facts} == set(range(len(paragraph.entities)))
        assert paragraph.context == " ".join(sentence.text for sentence in paragraph.sentences)


def test_each_sentence_states_its_facts_about_the_right_entity(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    for kind, paragraph, _ in paragraphs:
        previous = None
        for sentence in paragraph.sentences:
            about = {fact.entity for fact in sentence.facts}
            named = {
                index
                for index, entity in enumerate(paragraph.entities)
                if entity.name in sentence.text
            }
            if sentence.refers_back:
                assert named == set()
                assert about == previous
                opening = rf"(It|Its|He|His|She|Her|The (.+ )?{kind.noun})\b"
                assert re.match(opening, sentence.text), sentence.text
            else:
                assert named == about
            for fact in sentence.facts:
                assert fact.value in sentence.text
            assert sentence.text[0].isupper() and sentence.text.endswith(".")
            previous = about


def test_contrasted_values_follow_their_own_entity(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    checked = 0
    for _, paragraph, _ in paragraphs:
        for sentence in paragraph.sentences:
            if len({fact.entity for fact in sentence.facts}) == 1:
                continue
            position = {
                fact.value: sentence.text.index(paragraph.entities[fact.entity].name)
                for fact in sentence.facts
            }
            values = sorted(position, key=position.__getitem__)
            ends = [position[values[1]], len(sentence.text)]
            for value, end in zip(values, ends, strict=True):
                start = only_occurrence(sentence.text.lower(), value.lower())
                assert start is not None
                assert position[value] < start < end
            checked += 1
    assert checked > 200


def test_no_fact_is_repeated_and_values_differ(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    for _, paragraph, _ in paragraphs:
        pairs = [(fact.entity, fact.attribute.name) for fact in paragraph.facts]
        values = [fact.value.lower() for fact in paragraph.facts]
        assert len(set(pairs)) == len(pairs)
        assert len(set(values)) == len(values)


def test_back_references_have_their_share(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    sentences = [sentence for _, item, _ in paragraphs for sentence in item.sentences]
    share = sum(sentence.refers_back for sentence in sentences) / len(sentences)
    assert 0.08 <= share <= 0.14


def test_most_facts_have_a_distractor_of_the_same_attribute(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    shared = total = 0
    for _, paragraph, _ in paragraphs:
        counts = Counter(fact.attribute.name for fact in paragraph.facts)
        shared += sum(count for count in counts.values() if count > 1)
        total += sum(counts.values())
    assert shared / total > 0.5


def test_answers_are_the_asked_facts(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    for _, paragraph, questions in paragraphs:
        facts = {
            (paragraph.entities[fact.entity].name, fact.attribute.name): fact.value
            for fact in paragraph.facts
        }
        for question in questions:
            assert question.entity in question.text
            if not question.impossible_type:
                assert question.answer == facts[question.entity, question.attribute]


def test_unanswerable_questions_ask_for_what_is_not_stated(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    for _, paragraph, questions in paragraphs:
        names = {entity.name for entity in paragraph.entities}
        pairs = {
            (paragraph.entities[fact.entity].name, fact.attribute.name) for fact in paragraph.facts
        }
        stated = {fact.attribute.name for fact in paragraph.facts}
        for question in questions:
            if not question.impossible_type:
                continue
            assert question.answer == ""
            assert (question.entity, question.attribute) not in pairs
            if question.impossible_type == UNSTATED_ATTRIBUTE:
                assert question.entity in names
                assert question.attribute not in stated
            else:
                assert question.attribute in stated
                assert (question.entity in names) == (question.impossible_type == OTHER_ENTITY)
                assert (question.entity in paragraph.context) == (question.entity in names)


def test_unanswerable_types_are_balanced(
    paragraphs: list[tuple[Kind, Paragraph, list[Question]]],
) -> None:
    counts = Counter(
        question.impossible_type
        for _, _, questions in paragraphs
        for question in questions
        if question.impossible_type
    )
    total = sum(counts.values())
    assert counts[OTHER_ENTITY] / total == pytest.approx(0.47, abs=0.05)
    assert counts[UNSTATED_ATTRIBUTE] / total == pytest.approx(0.47, abs=0.05)
    assert 0 < counts[ABSENT_ENTITY] / total <= 0.1


# The shipped kinds


def test_shipped_kinds_are_many_and_wide(compiled: dict[str, list[Kind]]) -> None:
    assert len(compiled["starter"]) >= 12
    assert len(compiled["pretraining"]) >= 24
    assert all(7 <= len(kind.attributes) <= 12 for kind in compiled["starter"])
    assert all(len(kind.attributes) >= 8 for kind in compiled["pretraining"])
    widest = max(
        len(expansion.attributes)
        for kind in compiled["pretraining"]
        for expansion in kind.expansions
    )
    assert widest >= 200


def test_shipped_corpora_share_no_kind_statement_or_context(
    compiled: dict[str, list[Kind]], corpora: dict[str, dict[str, Any]]
) -> None:
    starter, pretraining = compiled["starter"], compiled["pretraining"]
    for label in ("name", "noun"):
        ours = {getattr(kind, label) for kind in starter}
        assert not ours & {getattr(kind, label) for kind in pretraining}
    starter_statements = set().union(*map(statements_of, starter))
    assert not starter_statements & set().union(*map(statements_of, pretraining))
    assert not set(contexts_of(corpora["starter"])) & set(contexts_of(corpora["pretraining"]))


def test_pretraining_text_holds_most_words_of_starter_questions(
    compiled: dict[str, list[Kind]],
) -> None:
    def template_words(kinds: list[Kind], with_statements: bool) -> set[str]:
        words: set[str] = set()
        for kind in kinds:
            attributes = list(kind.attributes)
            for expansion in kind.expansions:
                attributes += expansion.attributes
            for item in attributes:
                texts = item.questions
                if with_statements:
                    texts += item.verbs + item.of_clauses
                for text in texts:
                    words.update(re.findall(r"[a-z]+", re.sub(r"\{.*?\}", "", text.lower())))
        return words

    asked = template_words(compiled["starter"], with_statements=False)
    missing = asked - template_words(compiled["pretraining"], with_statements=True)
    assert len(missing) / len(asked) < 0.1, sorted(missing)


# Errors


def set_attribute(kinds: dict[str, Any], key: str, value: Any) -> None:
    kinds["kinds"]["stone"]["attributes"]["size2"][key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("value", "weight", "unknown 'weight'"),
        ("value", None, "'value' is missing"),
        ("questions", None, "at least one text"),
        ("questions", ["What is it of {name}?"] * 3, "at least 3 different"),
        ("questions", ["What?", "How?", "Who?"], "must hold {name}"),
        ("questions", ["A {name}", "B {name}", "C {name}"], "question mark"),
        ("questions", ["Is {nome} {name}?"] * 3, "unknown placeholder"),
        ("verbs", ["is big"], "must hold {value}"),
        ("verbs", ["has a size3 of {value}"], "reword one"),
        ("of", ["{name} is {value}"], "must look like"),
        ("expand", "sizes", "unknown list 'sizes'"),
    ],
)
def test_bad_attribute_is_named(
    small_kinds: dict[str, Any], key: str, value: Any, message: str
) -> None:
    set_attribute(small_kinds, key, value)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        generate_small(small_kinds)
    assert "'stone'" in str(caught.value)
    assert "'size2'" in str(caught.value) or "'size3'" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kinds",), {}, "'kinds' is missing or empty"),
        (("kinds", "stone", "noun"), None, "'noun' is missing"),
        (("kinds", "stone", "subjects"), {"they": "name"}, "pronoun 'they'"),
        (("kinds", "stone", "subjects"), {"it": "place"}, "kind 'stone': unknown 'place'"),
        (("names", "name"), ["{start}{tail}"], "names 'name': unknown 'tail'"),
        (("names", "name"), ["{name}a"], "refers to itself"),
        (("lists", "start"), [], "at least one text"),
        (("lists", "start"), ["a", 7], "put it in quotes"),
        (("lists", "number"), ["a"], "rename one"),
        (("values", "number"), {"integer": [9, 3]}, "give [lowest, highest]"),
        (("values", "number"), {"between": [3, 9]}, "give one of"),
    ],
)
def test_bad_kinds_are_named(
    small_kinds: dict[str, Any], path: tuple[str, ...], value: Any, message: str
) -> None:
    parent = small_kinds
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        generate_small(small_kinds)


def test_too_few_attributes_are_refused(small_kinds: dict[str, Any]) -> None:
    del small_kinds["kinds"]["stone"]["attributes"]["size2"]
    with pytest.raises(ValueError, match="kind 'stone': 5 attributes"):
        generate_small(small_kinds)


def test_running_out_of_names_is_reported(small_kinds: dict[str, Any]) -> None:
    small_kinds["lists"]["start"] = ["ab"]
    with pytest.raises(ValueError, match="kind 'stone': found no new name"):
        generate_small(small_kinds)


def test_ambiguous_values_are_reported(small_kinds: dict[str, Any]) -> None:
    small_kinds["values"]["number"] = {"text": ["abc", "abc def"]}
    with pytest.raises(ValueError, match="kind 'stone': no unambiguous paragraph"):
        generate_small(small_kinds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_articles", 0),
        ("paragraphs_per_article", (0, 2)),
        ("paragraphs_per_article", (3, 2)),
        ("questions_per_paragraph", (1, 13)),
        ("impossible_fraction", 1.1),
        ("impossible_fraction", -0.1),
    ],
)
def test_bad_sizes_are_named(small_kinds: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        generate_small(small_kinds, **{name: value})


# Parts


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("it has 12 rooms", "12", 7),
        ("from 1812 it has 12 rooms", "12", 17),
        ("12 and 12", "12", None),
        ("it has 4,212 rooms", "12", None),
        ("oaks and oak", "oak", 9),
    ],
)
def test_only_occurrence_counts_whole_words(text: str, phrase: str, expected: int | None) -> None:
    assert only_occurrence(text, phrase) == expected


def test_expansion_makes_one_attribute_for_each_word(small_kinds: dict[str, Any]) -> None:
    small_kinds["lists"]["words"] = ["lamp", "rope", "bell"]
    small_kinds["kinds"]["stone"]["attributes"]["thing"] = {
        "expand": "words",
        "per_paragraph": 2,
        "value": "number",
        "verbs": ["has {value} as {its} {word}"],
        "questions": ["What {word} has {name}?", "Which {word} has {name}?", "{word} {name}?"],
    }
    (kind,) = compile_kinds(small_kinds)
    names = [attribute.name for attribute in kind.expansions[0].attributes]
    assert names == ["thing lamp", "thing rope", "thing bell"]
    for _, paragraph, _ in make_paragraphs([kind], 1, 20, 0.0):
        used = {fact.attribute.name for fact in paragraph.facts} & set(names)
        assert len(used) <= 2


def test_article_agrees_with_the_value(small_kinds: dict[str, Any]) -> None:
    small_kinds["lists"]["colour"] = ["orange", "ivory", "red", "blue", "olive", "pink"]
    small_kinds["values"]["number"] = {"text": ["{colour} {start}{start}{end}"]}
    for name, attribute in small_kinds["kinds"]["stone"]["attributes"].items():
        attribute["verbs"] = [f"has {{a}} {{value}} {name}"]
        del attribute["of"]
    text = " ".join(contexts_of(generate_small(small_kinds, n_articles=30)))
    assert re.search(r"\ban (orange|ivory|olive)", text)
    assert re.search(r"\ba (red|blue|pink)", text)
    assert not re.search(r"\b(an (red|blue|pink)|a (orange|ivory|olive))", text)


def test_values_have_their_formats(small_kinds: dict[str, Any]) -> None:
    formats = {
        "people": ({"integer": [1000, 90000], "step": 10, "commas": True}, r"\d{1,2},\d\d0"),
        "height": ({"integer": [5, 9], "text": "{number} metres"}, r"[5-9] metres"),
        "width": ({"decimal": [1, 2], "text": "{number} km"}, r"[12]\.\d km"),
        "day": ({"date": [1871, 1872]}, r"([1-9]|1\d|2[0-8]) [A-Z][a-z]+ 187[12]"),
        "mix": ({"text": ["5{start}", "old {end}"]}, r"5[a-p]{2}|old (ia|or|um|esk)"),
    }
    small_kinds["values"] = {name: spec for name, (spec, _) in formats.items()}
    rng = random.Random(0)  # noqa: S311
    makers = starter_corpus._Makers(small_kinds)
    for name, (_, pattern) in formats.items():
        maker = makers.get(name, "test")
        for _ in range(50):
            assert re.fullmatch(pattern, maker(rng)), name
