"""What the starter base model is made of: vocabulary, initialization, practice examples."""

import random
import re

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from flan_qa_pipeline.pretraining import (
    LOOKUP_FRAMES,
    PieceRenamer,
    corrupt_spans,
    crop_context,
    initialize_reader,
    lookup_example,
    lookup_words,
    parameter_groups,
)


@pytest.fixture
def reader(tokenizer):
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    initialize_reader(model)
    return model


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
    renamer = PieceRenamer(tokenizer, contexts * 3 + ["The cat and a dog of it."] * 24)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

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


@pytest.mark.parametrize("sentences", [1, 2, 3])
def test_cropped_context_holds_the_answer_and_no_more_sentences(sentences):
    context = "A has 1. B has 2. C has 3. D has 4. E has 5."
    rng = random.Random(1)
    for answer in "12345":
        for _ in range(10):
            kept = crop_context(context, f"has {answer}", sentences, rng)
            assert kept in context and f"has {answer}" in kept
            assert kept.count(".") == sentences
