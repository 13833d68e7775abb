"""Optimizers, batches and checkpoints of pretraining."""

import dataclasses
import json
import random
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from accelerate.utils import set_seed
from conftest import DEVICE, assert_close
from transformers import AutoModelForSeq2SeqLM

import flan_qa_pipeline.pretraining.training_steps as training_steps
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pretraining.batches import BatchSource
from flan_qa_pipeline.pretraining.encoding import (
    EncodedText,
    train_sentencepiece,
)
from flan_qa_pipeline.pretraining.greedy_answers import write
from flan_qa_pipeline.pretraining.objectives import Objectives
from flan_qa_pipeline.pretraining.optimizers import Muon, build_optimizers, orthogonalize
from flan_qa_pipeline.pretraining.packing import pack_nf4
from flan_qa_pipeline.pretraining.random_t5 import build_random_t5
from flan_qa_pipeline.pretraining.training_steps import (
    Phase,
    learning_rate_factor,
    saved_steps,
    stage_of,
)


@pytest.fixture
def make_source(tokenizer, text, tasks, questions, pretrain, sentinels):
    def make(rank=0, questions=questions, **mixture):
        return BatchSource(
            text,
            questions,
            tasks,
            pretrain.batches,
            pretrain.reader.stages[0].mixture.model_copy(update=mixture),
            sentinels=sentinels,
            seed=7,
            rank=rank,
        )

    return make


@pytest.fixture
def train(make_source, pretrain, sentinels, tmp_path):
    def run(model=None, folder=tmp_path / "whole", **changes):
        set_seed(3)
        model = model or build_random_t5(pretrain.architecture, dropout=pretrain.dropout)
        model.to(DEVICE)
        settings = pretrain.model_copy(update=changes)
        parts = Objectives(model, settings, sentinels).to(DEVICE)
        sources = [make_source(), make_source()]
        return model, Phase(model, parts, settings.reader, settings, sources, folder)

    return run


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 40)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_orthogonalizing_keeps_directions():
    torch.manual_seed(0)
    matrix = torch.randn(1, 12, 12)
    u, _, v = torch.linalg.svd(matrix)
    diagonal = (u.mT @ orthogonalize(matrix).float() @ v.mT).diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.5


def test_muons_step_has_the_size_of_its_learning_rate():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 64))
    weight.grad = torch.randn(32, 64) * 1000
    Muon([{"params": [weight]}], lr=0.01).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)
    decayed = torch.nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([{"params": [decayed]}], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(decayed, torch.full((4, 4), 0.95))


def test_every_parameter_has_one_optimizer(pretrain):
    model = build_random_t5(pretrain.architecture, dropout=0.0)
    muon, adamw = build_optimizers(model, pretrain.reader.optimizer)
    held = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    of_muon = {id(p) for g in muon.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        layer = parameter.ndim == 2 and not any(
            part in name for part in ("shared", "lm_head", "relative_attention_bias")
        )
        assert (id(parameter) in of_muon) == layer
        queries = [g for g in muon.param_groups if any(p is parameter for p in g["params"])]
        assert all((g["scale"] == 16**-0.5) == (".q." in name) for g in queries)


def test_random_model_begins_at_the_loss_of_a_uniform_guess(pretrain):
    model = build_random_t5(pretrain.architecture, dropout=0.0)
    loss = model(input_ids=torch.tensor([[5, 6, 1]]), labels=torch.tensor([[7, 8, 1]])).loss
    assert loss.item() == pytest.approx(torch.tensor(1500.0).log().item(), rel=1e-4)
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()


def test_learning_rate_warms_up_stays_and_decays(pretrain):
    stages = [stage.model_copy(update={"steps": 50}) for stage in pretrain.reader.stages]
    phase = pretrain.reader.model_copy(
        update={"stages": stages, "warmup_steps": 10, "decay_steps": 40}
    )
    factors = [learning_rate_factor(phase, step) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9:61] == [1.0] * 52
    assert factors[60:] == sorted(factors[60:], reverse=True)
    assert factors[80] == 0.5
    assert factors[99] == 0.025
    assert [stage_of(pretrain.reader, step) for step in (0, 3, 4, 7)] == [
        (0, 0),
        (0, 0),
        (1, 4),
        (1, 4),
    ]
    with pytest.raises(ValueError, match="after the last"):
        stage_of(pretrain.reader, 8)


def test_kinds_of_batches_are_the_same_in_all_processes_and_rows_are_not(make_source):
    one, other = make_source(rank=0), make_source(rank=1)
    kinds = [one.kind(step) for step in range(400)]
    assert kinds == [other.kind(step) for step in range(400)]
    assert {"denoising", "short", "long"} == set(kinds)
    assert kinds.count("denoising") / 400 == pytest.approx(0.3, abs=0.07)
    for step in range(8):
        mine, theirs = one.batch(step), other.batch(step)
        assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
        assert not torch.equal(mine["input_ids"], theirs["input_ids"])


def test_further_questions_are_drawn_by_their_share_alone(make_source, questions):
    """Each first answerable and unanswerable question stands for all questions of its origin."""
    first, second, *_ = questions.answerable
    one, two = dataclasses.replace(first, answer=[90]), dataclasses.replace(second, answer=[91])
    bare, other = (dataclasses.replace(q, ids=q.ids[:3]) for q in questions.unanswerable[:2])
    sets = dataclasses.replace(
        questions, answerable=[one], extra=[two], unanswerable=[bare], extra_unanswerable=[other]
    )

    def drawn(**mixture):
        off = dict.fromkeys(("cloze", "answerable", "unanswerable", "asking", "edited"), 0.0)
        source = make_source(
            questions=sets, **off | {"denoising": 0.0, "substituted": 0.0} | mixture
        )
        rng = random.Random(1)
        tasks = source._tasks
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "annotated", lambda question, *a, **k: seen.append(question))
            patch.setattr(tasks, "asked", lambda question, *a: seen.append(question))
            for _ in range(60):
                source._read(rng, 0)
        return {id(question) for question in seen}

    assert drawn(extra=1.0) == {id(two)}
    assert drawn(answerable=1.0, asking=1.0, unanswerable=1.0) == {id(one), id(bare)}
    assert drawn(asking=1.0, extra=1e-9) == {id(one)}
    assert drawn(unanswerable=1.0, extra=1e-9) == {id(bare), id(other)}
    with pytest.raises(InputError, match="mixture.extra is 1.0, but there is no such question"):
        make_source(extra=1.0)


def test_a_batch_depends_on_its_step_alone(make_source):
    first, again = make_source(), make_source()
    for step in (5, 2, 9):
        assert all(torch.equal(t, again.batch(step)[n]) for n, t in first.batch(step).items())


def test_rows_end_and_are_padded(make_source):
    source = make_source()
    for step in range(10):
        batch = source.batch(step)
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        assert torch.equal(ids != 0, mask.bool())
        assert all(ids[row, n - 1] == 1 for row, n in enumerate(mask.sum(1)))
        assert (labels[:, 0] > 1).all()
        assert ((labels == 1).sum(1) + (labels[:, -1] > 1)).eq(1).all()


def test_mixtures_without_questions_and_short_texts_are_refused(make_source, text):
    with pytest.raises(InputError, match="mixture.generated is 1.0, but there is no such question"):
        make_source(generated=1.0)
    short = EncodedText(text.ids[:20], text.paragraphs[:1], text.articles[:1])
    with pytest.raises(InputError, match="holds 20 tokens of text, fewer than one row"):
        source = make_source()
        BatchSource(
            short,
            source._questions,
            source._tasks,
            source._batches,
            source._mixture,
            sentinels=[],
            seed=1,
            rank=0,
        )


def test_training_that_resumes_gives_the_same_weights(train, tmp_path):
    whole, phase = train()
    rows = phase.run()
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert all(any(k.startswith("loss_") for k in row) for row in rows)

    whole_parts = phase._objectives
    resumed, phase = train(folder=tmp_path / "parts", max_minutes=1e-9)
    with pytest.raises(InputError, match="max_minutes are over at step 0 of 8"):
        phase.run()
    resumed, phase = train(folder=tmp_path / "parts")
    take_step, taken = phase._take_step, []

    def interrupt(kind, batch, factor):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(factor)
        return take_step(kind, batch, factor)

    phase._take_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        phase.run()
    assert [path.name for path in saved_steps(tmp_path / "parts")] == ["step-00000004"]
    resumed, phase = train(folder=tmp_path / "parts")
    log = phase.run()
    assert [row["step"] for row in log] == [2, 4, 6, 8]
    exactly = {"rtol": 0, "atol": 0}
    assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), **exactly)
    parts, other_parts = whole_parts.named_parameters(), phase._objectives.named_parameters()
    assert_close(dict(other_parts), dict(parts), **exactly)
    losses = [
        {k: v for k, v in row.items() if k.startswith("loss_")} for row in (rows[-1], log[-1])
    ]
    assert_close(*losses, **exactly)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_steps_compile_to_whole_graphs(train, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, fullgraph=True))
    _, phase = train(compile=True)
    rows = phase.run()
    assert rows[0]["loss_short"] == pytest.approx(torch.tensor(1500.0).log().item(), rel=0.01)
    assert {"loss_generator", "loss_replaced_tokens", "loss_span_head"} <= set().union(*rows)


def test_a_step_changes_only_the_parts_whose_loss_ran(train, make_source):
    _, phase = train()
    source = make_source()
    trained = {"denoising": "replaced_tokens", "short": "span_head", "long": "span_head"}
    for step in range(6):
        kind = source.kind(step)
        before = {k: [p.clone() for p in v.parameters()] for k, v in phase._parts.items()}
        losses, _ = phase._take_step(kind, source.batch(step), 1.0)
        for name, part in phase._parts.items():
            same = all(map(torch.equal, before[name], part.parameters()))
            assert same == (name not in ("model", trained[kind])), (kind, name)
        expected = {"generator", "replaced_tokens"} if kind == "denoising" else {"span_head"}
        assert losses.keys() == {"target"} | expected


KILLS = ("written", "renamed", "half removed", "never")


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_while_a_checkpoint_is_saved_leaves_one_to_resume_from(
    train, tmp_path, monkeypatch, moment
):
    _, phase = train()
    phase.progress.step = 3
    phase._save()
    phase.progress.step = 6

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    folder = tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # a kill cleans nothing up
        if moment == "written":
            patch.setattr("pathlib.Path.rename", kill)
        elif moment == "renamed":
            patch.setattr(training_steps, "remove_at_once", kill)
        elif moment == "half removed":
            patch.setattr("pathlib.Path.unlink", kill)
        with nullcontext() if moment == "never" else pytest.raises(Killed):
            phase._save()
    _, again = train()
    progress = training_steps.load_checkpoint(folder, again._parts, again._optimizers)
    assert progress.step == (3 if moment == "written" else 6)
    for part, other in zip(phase._parts.values(), again._parts.values(), strict=True):
        assert all(map(torch.equal, part.parameters(), other.parameters()))


def test_a_damaged_checkpoint_is_named(train, tmp_path):
    _, phase = train()
    phase.run()
    (checkpoint,) = saved_steps(tmp_path / "whole")
    content = json.loads((checkpoint / "progress.json").read_text())
    assert content["step"] == 8
    (checkpoint / "pretraining.safetensors").write_bytes(b"no tensors")
    _, phase = train()
    with pytest.raises(InputError, match="step-00000008 cannot be read"):
        phase.run()


def test_training_lowers_the_loss(train):
    _, phase = train(logging_steps=1)
    stage = phase._phase.stages[0].model_copy(update={"steps": 60})
    phase._phase = phase._phase.model_copy(update={"stages": [stage], "warmup_steps": 5})
    rows = phase.run()
    first, last = (
        [v for r in part for k, v in r.items() if "loss" in k] for part in (rows[:10], rows[-10:])
    )
    assert sum(last) / len(last) < sum(first) / len(first) - 0.5


def test_divergence_stops_the_training(train, pretrain):
    model = build_random_t5(pretrain.architecture, dropout=0.0)
    with torch.no_grad():
        model.shared.weight[5:] = float("nan")
    _, phase = train(model)
    with pytest.raises(InputError, match="Pretraining diverged: loss_.* is NaN at step 2"):
        phase.run()


def test_packed_base_is_read_by_plain_transformers(pretrain, tmp_path):
    set_seed(1)
    sizes = {"vocab_size": 1504, "d_model": 64, "d_kv": 32, "d_ff": 128}  # whole blocks of NF4
    model = build_random_t5(pretrain.architecture.model_copy(update=sizes), dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    packed = pack_nf4(model.bfloat16())
    packed.save_pretrained(tmp_path)
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        given, expected = (m(input_ids=ids, labels=ids).logits for m in (read, packed))
        exact = model(input_ids=ids, labels=ids).logits
    assert torch.equal(given, expected)
    assert (
        torch.nn.functional.cosine_similarity(
            given.float().flatten(), exact.float().flatten(), dim=0
        )
        > 0.9
    )
    kinds = {name: type(module).__name__ for name, module in read.named_modules()}
    assert kinds["encoder.block.0.layer.0.SelfAttention.q"] == "Linear4bit"
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wo"] == "Linear"


def test_what_a_model_writes_does_not_depend_on_the_batch(pretrain):
    set_seed(2)
    model = build_random_t5(pretrain.architecture, dropout=0.0).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_()
    rows = [[5, 6, 7, 8], [9], [10, 11]]
    together = write(model, rows, 3, do_sample=False, max_new_tokens=6)
    alone = [write(model, [row], 1, do_sample=False, max_new_tokens=6)[0] for row in rows]
    assert together == alone
    banned = together[0][0]
    (forced,) = write(
        model, rows[:1], 1, do_sample=False, max_new_tokens=6, begin_suppress_tokens=[banned]
    )
    assert forced[0] != banned


def test_a_vocabulary_too_large_for_the_text_is_refused():
    with pytest.raises(InputError, match="architecture.vocab_size: no vocabulary of 5000"):
        train_sentencepiece(["one short line", "another short line"], 5000)
