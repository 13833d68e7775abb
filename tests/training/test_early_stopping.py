"""Training ends after a number of evaluations without a better F1."""

import pytest


def scores_of(adapter):
    return [entry["eval_f1"] for entry in adapter.training["log"] if "eval_f1" in entry]


def test_early_stopping_ends_the_training(train, training):
    stopping = training.model_copy(
        update={
            "num_train_epochs": 12,
            "learning_rate": 1e-12,
            "load_best_model_at_end": False,
            "early_stopping_patience": 2,
        }
    )
    _, adapter = train(stopping)
    assert len(scores_of(adapter)) == 3
    assert adapter.training["best_step"] is None


@pytest.mark.parametrize(
    ("scores", "threshold", "stops_at"),
    [
        ([10, 20, 20, 20], 0.0, 3),
        ([10, 20, 20.5, 20.9, 30], 1.0, 3),
        ([10, 11, 12, 13], 0.0, None),
        ([10, 9, 12, 11, 10], 0.0, 4),
    ],
)
def test_patience_counts_evaluations_without_a_better_score(
    train, training, monkeypatch, scores, threshold, stops_at
):
    given = iter([*scores, 1.0])
    monkeypatch.setattr(
        "flan_qa_pipeline.pipelines.modeling.nodes.answer_sample",
        lambda *args, **kwargs: {"f1": next(given)},
    )
    stopping = training.model_copy(
        update={
            "num_train_epochs": len(scores) + 1,
            "save_strategy": "no",
            "early_stopping_patience": 2,
            "early_stopping_threshold": threshold,
        }
    )
    _, adapter = train(stopping)
    seen = scores_of(adapter)
    assert seen == ([*scores, 1.0] if stops_at is None else scores[: stops_at + 1])
