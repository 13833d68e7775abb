"""Splits by article, the policy on unanswerable questions, and tokenized windows."""

import json
import logging
from collections import Counter

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from english import read_english, train_small_tokenizer
from transformers import AutoTokenizer

from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.data.splits import describe_part, near_duplicates
from flan_qa_pipeline.data.squad import CHECKED_QUESTION_FEATURES
from flan_qa_pipeline.data.tokenized import (
    digest_of,
    made_with,
    require_made_of,
    require_made_with,
)
from flan_qa_pipeline.data.windows import split_template
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pipelines.data_engineering import nodes
from flan_qa_pipeline.pipelines.data_engineering.nodes import (
    apply_unanswerable_policy,
    flatten_questions,
    reject_long_questions,
    split_by_article,
    tokenize_questions,
)


@pytest.fixture(scope="module")
def questions(corpus):
    return flatten_questions(corpus, "corpus.json", "error")[0]


@pytest.fixture(scope="module")
def two_files(corpus):
    articles = corpus["data"]
    return (
        flatten_questions({"data": articles[:20]}, "train.json", "error")[0],
        flatten_questions({"data": articles[20:]}, "validation.json", "error")[0],
    )


@pytest.fixture
def data(parameters):
    """Change data parameters as a configuration file would, checks included."""

    def change(**changes):
        return type(parameters.data).model_validate(parameters.data.model_dump() | changes)

    return change


@pytest.fixture
def tokenize(parameters, data):
    def run(splits, unanswerable="keep", template=None, **lengths):
        sizes = parameters.tokenization
        prompt = parameters.prompt.model_dump()
        return tokenize_questions(
            splits,
            parameters.model,
            type(parameters.prompt).model_validate(
                prompt | ({"template": template} if template else {})
            ),
            type(sizes).model_validate(sizes.model_dump() | lengths),
            data(unanswerable=unanswerable),
        )

    return run


def assert_disjoint(splits):
    names = list(splits)
    for column in ("title", "context", "id"):
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                assert not set(splits[one][column]) & set(splits[other][column])


def question(id_, context, text=None, title="t"):
    found = [] if text is None else [text]
    return {
        "id": id_,
        "title": title,
        "context": context,
        "question": "Which is it?",
        "answers": {"text": found, "answer_start": [context.index(t) for t in found]},
        "is_impossible": text is None,
    }


def as_splits(*records):
    rows = Dataset.from_list(list(records), features=CHECKED_QUESTION_FEATURES)
    return DatasetDict(train=rows, validation=rows)


def test_split_keeps_articles_whole(two_files, data):
    train, validation = two_files
    fractions = {"dev_fraction": 0.2, "calibration_fraction": 0.25}
    splits = split_by_article(train, validation, data(**fractions))
    assert_disjoint(splits)
    assert list(splits["validation"]) == list(validation)
    articles = {name: len(set(split["title"])) for name, split in splits.items()}
    assert articles == {"train": 12, "dev": 4, "calibration": 4, "validation": 10}
    assert sum(len(splits[name]) for name in ("train", "dev", "calibration")) == len(train)


def test_split_depends_on_the_seed_alone(two_files, data):
    first, again, other = (
        split_by_article(*two_files, data(dev_fraction=0.2, seed=seed)) for seed in (1, 1, 2)
    )
    assert list(first["dev"]["id"]) == list(again["dev"]["id"])
    assert list(first["dev"]["id"]) != list(other["dev"]["id"])


def test_two_files_are_pooled_and_split_anew(two_files, questions, data):
    splits = split_by_article(*two_files, data(validation_fraction=0.5, dev_fraction=0.2))
    assert_disjoint(splits)
    assert len(set(splits["validation"]["title"])) == 15
    assert len(set(splits["dev"]["title"])) == 3
    assert {id_ for split in splits.values() for id_ in split["id"]} == set(questions["id"])
    assert set(splits["validation"]["title"]) & set(two_files[0]["title"])


def test_the_same_file_twice_is_one_pool(questions, data):
    splits = split_by_article(questions, questions, data(validation_fraction=0.3))
    assert_disjoint(splits)
    assert sum(map(len, splits.values())) == len(questions)
    assert len(set(splits["validation"]["title"])) == 9


def test_the_same_id_for_different_questions_cannot_be_pooled(questions, data):
    changed = questions.map(lambda row: row | {"question": row["question"] + " Now?"})
    with pytest.raises(InputError, match=f"{questions[0]['id']!r} stands for different .* give"):
        split_by_article(questions, changed, data(validation_fraction=0.3))


def test_an_article_in_both_files_is_named(questions, two_files, data):
    title = sorted(set(two_files[1]["title"]))[0]
    with pytest.raises(InputError) as error:
        split_by_article(questions, two_files[1], data())
    message = str(error.value)
    files = data()
    assert message.startswith(f"10 article(s) of {files.validation_file} are also in ")
    assert f" {files.train_file}, such as" in message
    assert repr(title[:60]) in message
    assert "set data.validation_fraction" in message


@pytest.mark.parametrize("column", ["context", "id"])
def test_a_context_or_id_in_both_files_is_named(two_files, data, column):
    train, validation = two_files
    value = train[0][column]
    changed = validation.map(lambda row, i: row | ({column: value} if i == 0 else {}), True)
    with pytest.raises(InputError, match=f"1 .*{column}.* are also in .* remove them"):
        split_by_article(train, changed, data())


@pytest.mark.parametrize(
    "change",
    [str.upper, lambda text: text.replace(" ", " \n\u00a0"), lambda text: "\u200b" + text,
     lambda text: text.replace("e", "\uff45").replace("a", "\U0001d41a")],
    ids=["case", "spaces", "zero-width", "form"],
)  # fmt: skip
def test_a_context_in_both_files_is_found_in_another_form(two_files, data, change):
    train, validation = two_files
    leak = change(train[0]["context"])
    assert leak != train[0]["context"]
    changed = validation.map(lambda row, i: row | ({"context": leak} if i == 0 else {}), True)
    told = (
        r"1 context.* are also in .* \(but for spaces, case and Unicode form\), such as .* remove"
    )
    with pytest.raises(InputError, match=told):
        split_by_article(train, changed, data())


def test_articles_that_share_a_context_in_another_form_go_together(data):
    records = [question(f"q{i}", f"Text {i} is long.", title=f"title {i}") for i in range(20)]
    records += [question(f"r{i}", f"TEXT {i}  is long.", title=f"other {i}") for i in range(20)]
    pool = as_splits(*records)["train"]
    splits = split_by_article(pool, pool, data(validation_fraction=0.3, dev_fraction=0.2))
    for split in splits.values():
        titles = set(split["title"])
        assert {title.split()[1] for title in titles if title.startswith("title")} == {
            title.split()[1] for title in titles if title.startswith("other")
        }


def test_contexts_that_are_almost_in_the_other_file_are_counted(two_files, data, caplog):
    train, validation = two_files
    split_by_article(train, validation, data())
    assert "almost word for word" not in caplog.text
    words = train[0]["context"].split()
    assert len(words) > 30
    for words[-1], told in (("Elsewhere.", True), ("another one of the many ends.", False)):
        leak = " ".join(words if told else [*words[:15], *words[-1].split(), *words[15:]])
        changed = validation.map(lambda row, leak=leak: row | {"context": leak})
        caplog.clear()
        split_by_article(train, changed, data())
        assert ("1 of 1 contexts of the validation split stand almost word" in caplog.text) == told
    assert not near_duplicates(train, as_splits(question("q", "Too short."))["train"])[0]


def test_articles_that_share_a_context_go_together(data):
    records = [question(f"q{i}", f"Text {i} is long.", title=f"title {i}") for i in range(20)]
    records += [question(f"r{i}", f"Text {i} is long.", title=f"title {i + 1}") for i in range(8)]
    pool = as_splits(*records)["train"]
    held_chain = 0
    for seed in range(12):
        splits = split_by_article(
            pool, pool, data(validation_fraction=0.2, dev_fraction=0.2, seed=seed)
        )
        assert_disjoint(splits)
        chain = {f"title {i}" for i in range(9)}
        for split in splits.values():
            assert not chain & set(split["title"]) or chain <= set(split["title"])
        held_chain += chain <= set(splits["validation"]["title"])
    assert 0 < held_chain


def test_too_few_articles_are_refused(two_files, data):
    first = two_files[0].filter(
        lambda title: title == two_files[0][0]["title"], input_columns="title"
    )
    with pytest.raises(InputError, match="train split has no article; lower data.dev_fraction"):
        split_by_article(first, two_files[1], data(dev_fraction=0.5))


@pytest.mark.parametrize("policy", ["keep", "drop", "flag"])
def test_unanswerable_policy(two_files, data, tokenize, prompt_parameters, tokenizer, policy):
    before = split_by_article(*two_files, data(dev_fraction=0.2))
    after = apply_unanswerable_policy(before, data(unanswerable=policy))
    for name in before:
        impossible = [row["id"] for row in before[name] if row["is_impossible"]]
        assert impossible
        kept = set(after[name]["id"])
        assert kept == set(before[name]["id"]) - set(impossible if policy == "drop" else [])
        assert sum(after[name]["is_impossible"]) == (0 if policy == "drop" else len(impossible))

    windows = tokenize(after, policy)
    impossible = {row["id"] for split in before.values() for row in split if row["is_impossible"]}
    abstention = tokenizer(prompt_parameters.abstention)["input_ids"]
    for name in before:
        answered = {row["id"] for row in after[name]} - impossible
        assert answered <= set(windows[name]["id"])
        abstaining = [row["id"] for row in windows[name] if row["labels"] == abstention]
        silent = {row["id"] for row in windows[name] if not row["labels"]}
        if policy == "keep":
            assert set(abstaining) >= impossible & set(after[name]["id"])
            assert impossible & set(after[name]["id"])
            assert not silent
        else:
            assert not abstaining
            assert silent >= impossible & set(windows[name]["id"])
    if policy != "keep":
        assert all(windows["train"]["labels"])
    for name in ("dev", "validation", "calibration"):
        assert set(windows[name]["id"]) == set(after[name]["id"])


@pytest.mark.parametrize(
    ("policy", "name"), [("flag", "train"), ("drop", "train"), ("drop", "validation")]
)
def test_policy_that_leaves_nothing_is_refused(two_files, data, policy, name):
    splits = split_by_article(*two_files, data(dev_fraction=0.2))
    splits[name] = splits[name].filter(lambda bad: bad, input_columns="is_impossible")
    assert len(splits[name])
    with pytest.raises(InputError, match=f"{policy} leaves nothing of the {name} split.* keep"):
        apply_unanswerable_policy(splits, data(unanswerable=policy))


def test_limits_on_the_number_of_questions(two_files, data, caplog):
    splits = split_by_article(*two_files, data())
    caplog.set_level("INFO", logger="flan_qa_pipeline")
    limits = {"max_train_questions": 9, "max_validation_questions": 4}
    some, again = (apply_unanswerable_policy(splits, data(**limits)) for _ in range(2))
    assert (len(some["train"]), len(some["validation"])) == (9, 4)
    assert len(some["dev"]) == len(splits["dev"])
    used = f"data.max_train_questions: 9 of {len(splits['train'])} questions are used."
    assert used in caplog.messages
    assert not any("max_dev_questions" in message for message in caplog.messages)
    limits = {"max_dev_questions": 3, "max_calibration_questions": 2}
    few = apply_unanswerable_policy(splits, data(**limits))
    for name, size in (("dev", 3), ("calibration", 2)):
        assert len(few[name]) == size
        assert set(few[name]["id"]) < set(splits[name]["id"])
    assert list(some["train"]["id"]) == list(again["train"]["id"])
    assert set(some["train"]["id"]) < set(splits["train"]["id"])
    large = apply_unanswerable_policy(splits, data(max_train_questions=10**6))
    assert len(large["train"]) == len(splits["train"])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_share_of_unanswerable_questions(two_files, data, share):
    splits = split_by_article(*two_files, data(dev_fraction=0.2))
    thinned, again = (
        apply_unanswerable_policy(splits, data(unanswerable_share=share)) for _ in range(2)
    )
    assert thinned["validation"]["id"][:] == splits["validation"]["id"][:]
    for name in ("train", "dev", "calibration"):
        before, after = (
            Counter(zip(split["id"], split["is_impossible"], strict=True))
            for split in (splits[name], thinned[name])
        )
        assert after <= before
        counts = [
            Counter(impossible for _, impossible in questions) for questions in (before, after)
        ]
        assert abs(counts[1][True] - share * len(after)) < 1
        assert counts[0][True] == counts[1][True] or counts[0][False] == counts[1][False]
        assert list(thinned[name]["id"]) == list(again[name]["id"])


def test_a_part_of_the_training_questions_knows_the_whole(two_files, data, tmp_path):
    splits = split_by_article(*two_files, data())
    whole = len(splits["train"])
    share, limit = {"unanswerable_share": 0.2}, {"max_train_questions": 9}
    by_share, by_limit = "data.unanswerable_share=null", "data.max_train_questions=null"
    for given, left_out_by in (
        (share, by_share),
        (limit, by_limit),
        (share | limit, f"{by_share},{by_limit}"),
        (share | {"max_train_questions": whole - 1}, f"{by_share},{by_limit}"),
    ):
        apply_unanswerable_policy(splits, data(**given)).save_to_disk(tmp_path / left_out_by)
        part = load_from_disk(tmp_path / left_out_by)["train"]
        assert describe_part(part) == (
            f"{len(part)} of {whole} questions; --params={left_out_by} trains on all."
        )
    assert describe_part(splits["train"]) is None
    large = apply_unanswerable_policy(splits, data(max_train_questions=whole))
    assert describe_part(large["train"]) is None


def test_a_split_of_one_kind_stays_whole_and_the_log_says_so(two_files, data, caplog):
    splits = split_by_article(*two_files, data(dev_fraction=0.2))
    splits["dev"] = splits["dev"].filter(lambda bad: bad, input_columns="is_impossible")
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        thinned = apply_unanswerable_policy(splits, data(unanswerable_share=0.2))
    assert thinned["dev"]["id"][:] == splits["dev"]["id"][:]
    assert len(thinned["train"]) < len(splits["train"])
    assert "data.unanswerable_share changes nothing in dev:" in caplog.text


@pytest.mark.parametrize("policy", ["drop", "flag"])
def test_a_share_concerns_only_questions_that_are_kept(two_files, data, caplog, policy):
    splits = split_by_article(*two_files, data(dev_fraction=0.2))
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        with_share, without = (
            apply_unanswerable_policy(splits, data(unanswerable_share=share, unanswerable=policy))
            for share in (0.2, None)
        )
    assert caplog.messages == [
        f"data.unanswerable_share concerns questions that are kept; data.unanswerable is {policy}."
    ]
    assert [len(split) for split in with_share.values()] == [
        len(split) for split in without.values()
    ]


TEMPLATES = [
    "question: {question} context: {context}",
    "Read this. {context} Now say: {question}",
    "{context} {question}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_make_the_same_tokens_as_the_whole_prompt(
    two_files, data, tokenize, tokenizer, template
):
    splits = split_by_article(*two_files, data())
    rows = tokenize(splits, template=template, max_source_length=2000)["validation"]
    assert len(rows) == len(splits["validation"])
    for row, asked in zip(rows, splits["validation"], strict=True):
        text = template.format(question=asked["question"], context=asked["context"])
        assert row["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_long_contexts_are_read_in_windows(two_files, data, tokenize, tokenizer, template):
    size, stride = 90, 20
    splits = split_by_article(*two_files, data())
    rows = tokenize(splits, template=template, max_source_length=size, doc_stride=stride)
    by_id = {}
    for row in rows["validation"]:
        by_id.setdefault(row["id"], []).append(row)
    n_windows = []
    for asked in splits["validation"]:
        before, after = (
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in split_template(template, asked["question"])
        )
        after.append(tokenizer.eos_token_id)
        windows = by_id[asked["id"]]
        n_windows.append(len(windows))
        assert [row["window"] for row in windows] == list(range(len(windows)))
        read = []
        for row in windows:
            ids = row["input_ids"]
            assert len(ids) <= size
            assert tokenizer.pad_token_id not in ids
            assert ids[: len(before)] == before
            assert ids[-len(after) :] == after
            part = ids[len(before) : -len(after)]
            if read:
                assert read[-stride:] == part[:stride]
            read += part[stride if read else 0 :]
        assert read == tokenizer(asked["context"], add_special_tokens=False)["input_ids"]
    assert max(n_windows) >= 3


def test_only_windows_with_the_answer_are_labelled_with_it(
    two_files, data, tokenize, tokenizer, prompt_parameters
):
    splits = split_by_article(*two_files, data())
    rows = tokenize(splits, max_source_length=90, doc_stride=20)["train"]
    asked = {row["id"]: row for row in splits["train"]}
    abstention = tokenizer(prompt_parameters.abstention)["input_ids"]
    n_with, n_without = 0, 0
    labelled = set()
    for row in rows:
        texts = asked[row["id"]]["answers"]["text"]
        read = tokenizer.decode(row["input_ids"], skip_special_tokens=True).split("context:")[1]
        if held := [text for text in texts if text in read]:
            assert row["labels"] == tokenizer(held[0])["input_ids"]
            labelled.add(row["id"])
            n_with += 1
        else:
            assert row["labels"] == abstention
            n_without += bool(texts)
    assert labelled == {id_ for id_, row in asked.items() if row["answers"]["text"]}
    assert n_with > 100
    assert n_without > 100


def test_a_window_with_the_words_of_the_answer_elsewhere_is_not_trained_on(
    tokenize, tokenizer, prompt_parameters
):
    filler = "The Final was played in July and won by many. " * 6
    context = f"Vera Paul was the referee. {filler}They met Vera  Paul again. {filler}Veras Paulo."
    record = question("q", context, "Vera Paul")
    splits = as_splits(record)
    kept = tokenize(splits, max_source_length=64, doc_stride=16)
    abstention = tokenizer(prompt_parameters.abstention)["input_ids"]
    held = {row["window"]: row["labels"] for row in kept["validation"]}
    read = {
        row["window"]: tokenizer.decode(row["input_ids"]).split("context:")[1]
        for row in kept["validation"]
    }
    kinds = {number: labels for number, labels in held.items() if labels != abstention}
    assert [number for number, text in read.items() if "met Vera Paul again" in text] == [
        number for number, labels in kinds.items() if not labels
    ]
    assert held[0] == tokenizer("Vera Paul")["input_ids"]
    assert held[max(held)] == abstention
    assert [row["window"] for row in kept["train"]] == [n for n, ids in held.items() if ids]


def test_windows_without_the_answer_are_for_validation_only_unless_kept(two_files, data, tokenize):
    splits = split_by_article(*two_files, data(unanswerable="flag"))
    lengths = {"max_source_length": 90, "doc_stride": 20}
    kept, flagged = tokenize(splits, "keep", **lengths), tokenize(splits, "flag", **lengths)
    assert list(kept["validation"]["window"]) == list(flagged["validation"]["window"])
    answers = {row["id"]: row["answers"]["text"] for row in splits["train"]}
    assert set(flagged["train"]["id"]) == {id_ for id_, texts in answers.items() if texts}
    assert len(flagged["train"]) < len(kept["train"])


def test_long_answers_are_cut_but_end_with_the_end_token(tokenize, tokenizer):
    context = "The Final had " + "Vera Paul " * 30 + "as guests."
    text = context[14:300]
    row = tokenize(as_splits(question("q", context, text)), max_target_length=8)["train"][0]
    assert len(row["labels"]) == 8
    assert row["labels"][-1] == tokenizer.eos_token_id


def test_windows_say_what_they_were_made_with_and_of(
    tokenize, parameters, data, tokenizer, tmp_path
):
    splits = as_splits(question("q", "A context that is short.", "short"))
    tokenize(splits).save_to_disk(tmp_path / "windows")
    windows = load_from_disk(tmp_path / "windows")
    sizes, prompt = parameters.tokenization, parameters.prompt
    wanted = made_with(tokenizer, prompt, sizes, data())
    require_made_with(windows, wanted)
    require_made_of(windows, fingerprint_splits(splits))
    other = splits["train"].map(lambda row: row | {"question": "Which one is it?"})
    with pytest.raises(InputError, match="hold different validation questions"):
        require_made_of(windows, fingerprint_splits(DatasetDict(splits, validation=other)))

    fewer_pieces = train_small_tokenizer(read_english(5), vocab_size=600)
    saying = prompt.model_copy(update={"abstention": "none"})
    asking = prompt.model_copy(update={"template": "{context} {question}"})
    longer = sizes.model_copy(update={"max_target_length": 9})
    for changed, name in (
        (made_with(fewer_pieces, prompt, sizes, data()), "the tokenizer's digest is"),
        (made_with(tokenizer, saying, sizes, data()), "prompt.abstention is 'none', theirs"),
        (made_with(tokenizer, asking, sizes, data()), "prompt.template is"),
        (made_with(tokenizer, prompt, longer, data()), "max_target_length is 9, theirs 24"),
        (made_with(tokenizer, prompt, sizes, data(unanswerable="flag")), "data.unanswerable is"),
        (wanted | {"the version of the windowing": 0}, "the version of the windowing is 0"),
    ):
        with pytest.raises(InputError, match=name) as refused:
            require_made_with(windows, changed)
        assert str(refused.value).count("theirs") == 1


def test_a_tokenizer_that_was_used_and_saved_keeps_its_digest(tokenizer, tmp_path):
    digest = digest_of(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert digest_of(tokenizer) == digest
    tokenizer.save_pretrained(tmp_path)
    assert digest_of(AutoTokenizer.from_pretrained(tmp_path)) == digest


def test_windows_that_do_not_say_what_they_were_made_with_are_refused():
    silent = DatasetDict(train=Dataset.from_dict({"input_ids": [[1]]}))
    with pytest.raises(InputError, match="do not say what .* kedro run --pipelines=data_eng"):
        require_made_with(silent, {})


def test_a_long_step_shows_one_bar_and_a_short_one_none(tokenize, capfd, monkeypatch):
    splits = as_splits(question("q", "A context that is short.", "short"))
    monkeypatch.setitem(nodes.LATE_BAR, "delay", 600)
    tokenize(splits)
    assert "Tokenize" not in capfd.readouterr().err
    monkeypatch.setitem(nodes.LATE_BAR, "delay", 0)
    tokenize(splits, template="{context} {question}")
    assert "Tokenize:   0%" in capfd.readouterr().err


def test_answers_that_the_tokenizer_cannot_spell_are_counted(tokenize, caplog):
    def of(*answers):
        return DatasetDict(
            train=Dataset.from_list(
                [
                    {
                        "id": str(i),
                        "title": "x",
                        "context": answer,
                        "question": "What?",
                        "answers": {"text": [answer], "answer_start": [0]},
                        "is_impossible": False,
                    }
                    for i, answer in enumerate(answers)
                ],
                features=CHECKED_QUESTION_FEATURES,
            )
        )

    tokenize(of("Vera Dormore", "4.0 metres"))
    assert "WARNING" not in caplog.text
    tokenize(of("Vera Dormore", "\u6771\u4eac", "4.0 metres", "\u6771\u4eac"))
    assert "a character of the answer in 2 of 4 windows (50.0%)" in caplog.text


def test_too_long_question_is_named(tokenize):
    record = question("q7", "A context that is short.") | {"question": "Why " * 80 + "?"}
    with pytest.raises(InputError) as error:
        tokenize(as_splits(record), max_source_length=64, doc_stride=8)
    message = str(error.value)
    assert message.startswith("Question 'q7' takes ")
    assert "of 64 tokens and leaves 0 for the context, not more than doc_stride 8" in message
    assert "raise tokenization.max_source_length" in message


def test_real_squad_v2_loses_no_short_answer(squad_v2_dir, data, tokenize, tokenizer):
    raw = json.loads((squad_v2_dir / "validation.json").read_text(encoding="utf-8"))
    raw["data"] = raw["data"][:2]
    asked = flatten_questions(raw, "validation.json", "error")[0]
    stride = 64
    windows = tokenize(DatasetDict(train=asked), "flag", max_source_length=256, doc_stride=stride)[
        "train"
    ]
    short = {
        row["id"]
        for row in asked
        for text in row["answers"]["text"][:1]
        if len(tokenizer(text)["input_ids"]) < stride - 8
    }
    assert len(short) > 100
    assert short <= set(windows["id"])


def test_a_question_that_is_too_long_is_listed_or_named_with_its_file(parameters, caplog):
    records = [question(f"q{i}", "A context that is short.", "short") for i in range(2500)]
    for i in (0, 1500):
        records[i]["question"] = "Why " * 400 + "?"
    rows = Dataset.from_list(records, features=CHECKED_QUESTION_FEATURES)
    none = pd.DataFrame(columns=["source", "place", "id", "problem"])
    arguments = (parameters.model, parameters.prompt, parameters.tokenization)
    kept, rejected = reject_long_questions(rows, none, "a.json", "skip", *arguments)
    assert len(kept) == 2498
    assert not {"q0", "q1500"} & set(kept["id"])
    assert rejected[["source", "id"]].to_numpy().tolist() == [["a.json", "q0"], ["a.json", "q1500"]]
    assert rejected["problem"].str.contains("it takes .* of 256 tokens and leaves 0").all()
    assert "a.json: 2 invalid records were left out" in caplog.text
    told = "a.json: question 'q0' takes .* shorten the question.*data.on_invalid=skip leaves"
    with pytest.raises(InputError, match=told):
        reject_long_questions(rows, none, "a.json", "error", *arguments)
    with pytest.raises(InputError, match="a.json holds no valid questions; the first: it takes"):
        reject_long_questions(rows.select([0]), none, "a.json", "skip", *arguments)
    assert reject_long_questions(kept, none, "a.json", "skip", *arguments)[0] is kept
