"""What the starter base model is made of: vocabulary, initialization, practice examples."""

import random
import re
from collections import Counter

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM

from flan_qa_pipeline.config.parameters import PretrainingParameters
from flan_qa_pipeline.models.loading import load_tokenizer
from flan_qa_pipeline.pretraining.pretraining import (
    LOOKUP_FRAMES,
    PieceRenamer,
    ReadingExamples,
    build_reader,
    corrupt_spans,
    crop,
    lookup_example,
    lookup_words,
    parameter_groups,
    split_sentences,
)


@pytest.fixture(scope="module")
def tokenizer(model_parameters):
    """A tokenizer of the starter corpus, whose names the tests rename."""
    return load_tokenizer(model_parameters)


@pytest.fixture
def reader(tokenizer):
    return build_reader(
        tokenizer,
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
    )


def test_head_stays_untied_and_unscaled_when_saved_and_loaded(reader, tmp_path):
    with torch.no_grad():
        reader.lm_head.weight.add_(torch.randn_like(reader.lm_head.weight))
    reader.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert not loaded.config.scale_decoder_outputs
    assert loaded.encoder.embed_tokens.weight.data_ptr() == loaded.shared.weight.data_ptr()
    assert loaded.lm_head.weight.data_ptr() != loaded.shared.weight.data_ptr()
    ids = torch.tensor([[5, 9, 40, 1]])
    with torch.inference_mode():
        before, after = (
            model(input_ids=ids, decoder_input_ids=ids).logits for model in (reader.eval(), loaded)
        )
    torch.testing.assert_close(after, before)


def test_equal_tokens_attend_to_each_other_from_the_start(reader):
    attention = reader.encoder.block[0].layer[0].SelfAttention
    torch.manual_seed(0)
    tokens = torch.randn(2, reader.config.d_model)
    scores = attention.q(tokens) @ attention.k(tokens).T
    assert scores.diagonal().min() > 2 * (scores - scores.diagonal().diag()).abs().max()


def test_every_parameter_is_in_one_group(reader):
    groups = parameter_groups(reader, 1e-3, 5e-3)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in reader.parameters())
    assert [group["lr"] for group in groups] == [1e-3, 5e-3]
    assert id(reader.lm_head.weight) in {id(parameter) for parameter in groups[1]["params"]}


@pytest.mark.parametrize("max_name_pieces", [1, 3])
def test_lookups_state_every_relation_of_every_name_and_ask_for_one(tokenizer, max_name_pieces):
    pieces = list(range(150, 400))
    words = lookup_words(tokenizer)
    rng = random.Random(3)
    for _ in range(50):
        context, question, answer = lookup_example(
            pieces,
            words,
            rng,
            names=3,
            relations=2,
            max_pieces=2,
            max_name_pieces=max_name_pieces,
        )
        sentences, sentence = set(), []
        for i in context:
            sentence.append(i)
            if i == words["."][0]:
                sentences.add(tuple(sentence))
                sentence = []
        assert len(sentences) == 6
        asked = [i for i in question if i in pieces and i not in sum(words.values(), [])]
        assert 2 <= len(asked) <= 2 * max_name_pieces
        answering = [s for s in sentences if set(asked) <= set(s) and _holds(s, answer)]
        assert answering
        if max_name_pieces == 1:
            assert len(answering) == 1


def _holds(ids, part):
    return any(list(ids[i : i + len(part)]) == part for i in range(len(ids)))


def test_renaming_keeps_grammar_and_word_starts_and_renames_all_names_and_values(tokenizer):
    contexts = [
        "The mayor of Harwick is Ada Venton, and the mayor of Selby is Hugo Marley.",
        "The river of Dunford is the Tarn, and it is crossed by the bridge of Ellham.",
    ]

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    counted = contexts * 3 + ["The cat and a dog of it."] * 24
    renamer = PieceRenamer(tokenizer, [ids(text) for text in counted])

    context, question, answer = ids(contexts[0]), ids("Who is mayor of Selby?"), ids("Hugo Marley")
    new = renamer.draw(context, question, [answer, ids("Ada Venton")], random.Random(2))
    assert len(set(new.values())) == len(new)
    for piece in ids("the of The and"):
        assert piece not in new
    for text in ("Harwick", "Venton", "mayor", "Selby", "Hugo"):
        assert set(ids(text)) - renamer.common <= set(new)
    pieces = tokenizer.convert_ids_to_tokens
    for old, name in new.items():
        assert pieces(old).startswith("▁") is pieces(name).startswith("▁")
    renamed = [new.get(i, i) for i in context]
    assert renamed != context
    assert _holds(renamed, [new.get(i, i) for i in answer])


def test_lookup_frames_read_as_text(tokenizer):
    words = lookup_words(tokenizer)
    for statement, question in LOOKUP_FRAMES:
        for frame in (statement, question):
            filled = [w if not w.startswith("{") else None for w in frame.split()]
            ids = [i for word in filled if word for i in words[word]]
            expected = re.sub(r"\{\w+\} ?", "", frame).replace(" .", ".").replace(" ?", "?")
            assert tokenizer.decode(ids).replace(" .", ".").replace(" ?", "?") == expected.strip()


def test_span_corruption_loses_nothing():
    rng = random.Random(5)
    sentinels = list(range(1000, 1100))
    for length in (2, 10, 64):
        ids = [rng.randrange(500) for _ in range(length)]
        source, target = corrupt_spans(ids, sentinels, rng, noise_density=0.15, mean_span_length=3)
        spans, name = {}, None
        for i in target:
            if i >= 1000:
                name = i
                spans[name] = []
            else:
                spans[name].append(i)
        restored = [j for i in source for j in (spans[i] if i >= 1000 else [i])]
        assert restored == ids
        assert 0 < sum(map(len, spans.values())) <= max(1, round(0.15 * length))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_crop_holds_the_hit_and_no_more_sentences(kept):
    context = "A has 1. B has 2.5 of it. C has 3. D has 4. E has 5."
    sentences = split_sentences(context)
    assert len(sentences) == 5 and " ".join(sentences) == context
    rng = random.Random(1)
    seen = set()
    for hit in range(5):
        for _ in range(20):
            part = crop(len(sentences), hit, kept, rng)
            assert len(sentences[part]) == kept
            assert sentences[hit] in sentences[part]
            seen.update(sentences[part])
    assert seen == set(sentences)


CONTEXT = (
    "The mayor of Harwick is Ada Venton. The mayor of Selby is Hugo Marley. Selby has 12 wells."
)
HOURS = range(3, 9)
SIZE = 40


@pytest.fixture
def examples(tokenizer, raw_parameters):
    def make(**changes):
        raw = raw_parameters["starter"]["pretraining"] | {
            "lookups": [dict(examples=SIZE, names=2, relations=1, max_pieces=1, max_name_pieces=1)],
            "cropped_examples": 3 * SIZE,
            "whole_examples": 6 * SIZE,
            "per_device_train_batch_size": SIZE,
            "span_corruption_fraction": 0.0,
        }
        corpus = Dataset.from_dict(
            {
                "context": [CONTEXT] * 3 + [f"It sleeps for {n} hours. It is old." for n in HOURS],
                "question": ["Who is the mayor of Selby?"] * 3 + ["How long?"] * len(HOURS),
                "answer": ["Hugo Marley"] * 3 + [f"{n} hours" for n in HOURS],
            }
        )
        return ReadingExamples(
            corpus, tokenizer, PretrainingParameters.model_validate(raw | changes)
        )

    return make


def texts_of(examples, tokenizer, indices):
    return [
        tuple(
            tokenizer.decode(examples[i][key], skip_special_tokens=True)
            for key in ("input_ids", "labels")
        )
        for i in indices
    ]


def test_questions_are_answered_in_every_prompt(examples, tokenizer, raw_parameters):
    made = examples(renamed_fraction=0.0)
    assert len(made) == 10 * SIZE
    drawn = Counter(texts_of(made, tokenizer, range(4 * SIZE, 10 * SIZE)))
    for source, target in drawn:
        assert CONTEXT in source or "It is old." in source
        assert ("mayor of Selby?" in source) is (target == "Hugo Marley")
        assert target in source
    rows = [(CONTEXT, "Who is the mayor of Selby?", "Hugo Marley")] + [
        (f"It sleeps for {n} hours. It is old.", "How long?", f"{n} hours") for n in HOURS
    ]
    possible = {
        (prompt.format(context=context, question=question), answer)
        for prompt in raw_parameters["starter"]["pretraining"]["prompts"]
        for context, question, answer in rows
    }
    assert set(drawn) <= possible and len(drawn) > 0.7 * len(possible)


def test_cropped_contexts_come_before_whole_ones_in_batches_of_one_length(examples, tokenizer):
    made = examples(renamed_fraction=0.0)
    for source, target in texts_of(made, tokenizer, range(SIZE, 4 * SIZE)):
        assert CONTEXT not in source
        assert target in source
    for start in range(4 * SIZE, 9 * SIZE, SIZE):
        lengths = [len(made[i]["input_ids"]) for i in range(start, start + SIZE)]
        assert max(lengths) - min(lengths) < 60


def test_an_example_is_the_same_whenever_it_is_asked_for(examples):
    made, again = examples(), examples()
    indices = range(0, len(made), 7)
    forwards = [made[i] for i in indices]
    assert [again[i] for i in reversed(indices)] == forwards[::-1]
    assert any(
        made[i] != example for i, example in zip(range(1, len(made)), forwards, strict=False)
    )


def test_renamed_answers_stand_in_their_renamed_context(examples, tokenizer):
    made = examples(renamed_fraction=0.99)
    answers = Counter()
    for i in range(4 * SIZE, 10 * SIZE):
        source, target = made[i]["input_ids"][:-1], made[i]["labels"][:-1]
        assert _holds(source, target)
        answers[tokenizer.decode(target)] += 1
    assert answers["Hugo Marley"] < 0.05 * answers.total()
    assert max(answers.values()) < 0.5 * answers.total()


def test_span_corruption_takes_its_share(examples, tokenizer):
    made = examples(span_corruption_fraction=0.5)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    corrupted = sum(made[i]["labels"][0] == first for i in range(SIZE, 10 * SIZE))
    assert 0.4 < corrupted / (9 * SIZE) < 0.6
