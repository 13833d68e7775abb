"""The no-answer sweep against the official script's algorithm, written down a second time."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.evaluation.no_answer_threshold import (
    abstention_rows,
    apply_threshold,
    best_threshold,
    candidates,
    no_answer_probability,
    precision_recall,
)
from flan_qa_pipeline.pipelines.reporting.nodes import tabulate_abstention
from flan_qa_pipeline.reporting.figures import plot_abstention

moderate = settings(max_examples=200)
question = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]),
    st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]) | st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["cat", "dog", ""]),
)
question_lists = st.lists(question, min_size=1, max_size=12)


def official_best(preds, scores, na_probs, qid_to_has_ans):
    """find_best_thresh."""
    cur_score = best_score = sum(1 for k in qid_to_has_ans if not qid_to_has_ans[k])
    best_thresh = 0.0
    for qid in sorted(na_probs, key=lambda k: na_probs[k]):
        if qid_to_has_ans[qid]:
            diff = scores[qid]
        else:
            diff = -1 if preds[qid] else 0
        cur_score += diff
        if cur_score > best_score:
            best_score = cur_score
            best_thresh = na_probs[qid]
    return 100.0 * best_score / len(scores), best_thresh


def official_precision_recall(scores, na_probs, num_true_pos, qid_to_has_ans):
    """make_precision_recall_eval."""
    qid_list = sorted(na_probs, key=lambda k: na_probs[k])
    true_pos, avg_prec = 0.0, 0.0
    precisions, recalls = [1.0], [0.0]
    for i, qid in enumerate(qid_list):
        if qid_to_has_ans[qid]:
            true_pos += scores[qid]
        cur_p = true_pos / float(i + 1)
        cur_r = true_pos / float(num_true_pos)
        if i == len(qid_list) - 1 or na_probs[qid] != na_probs[qid_list[i + 1]]:
            avg_prec += cur_p * (cur_r - recalls[-1])
            precisions.append(cur_p)
            recalls.append(cur_r)
    return precisions[1:], recalls[1:], 100.0 * avg_prec


def official_apply(scores, na_probs, qid_to_has_ans, na_prob_thresh):
    """apply_no_ans_threshold."""
    return {
        qid: float(not qid_to_has_ans[qid]) if na_probs[qid] > na_prob_thresh else s
        for qid, s in scores.items()
    }


def split(questions):
    """Arrays and the official script's dictionaries; without a gold, the text decides the score."""
    scores, na_probs, has_answer, texts = (list(column) for column in zip(*questions, strict=True))
    for i, text in enumerate(texts):
        if not has_answer[i]:
            scores[i] = float(not text)
        elif not text:
            scores[i] = 0.0
    arrays = (
        np.array(scores, dtype=float),
        np.array(na_probs, dtype=float),
        np.array(has_answer, dtype=bool),
        np.array([bool(text) for text in texts]),
    )
    return arrays, [dict(enumerate(column)) for column in (texts, scores, na_probs, has_answer)]


@moderate
@given(question_lists)
def test_best_threshold_is_the_official_one(questions):
    arrays, dictionaries = split(questions)
    best, threshold = best_threshold(*arrays)
    expected, expected_threshold = official_best(*dictionaries)
    assert best == pytest.approx(expected, rel=1e-12)
    assert threshold == pytest.approx(expected_threshold, abs=0)


@moderate
@given(question_lists)
def test_precision_and_recall_are_the_official_ones(questions):
    (scores, na_probs, has_answer, _), (_, score_of, prob_of, has_of) = split(questions)
    if not has_answer.any():
        with pytest.raises(ValueError, match="No question has an answer"):
            precision_recall(scores, na_probs, has_answer)
        return
    curve = precision_recall(scores, na_probs, has_answer)
    precisions, recalls, average = official_precision_recall(
        score_of, prob_of, has_answer.sum(), has_of
    )
    assert curve.precision.tolist() == pytest.approx(precisions, rel=1e-12)
    assert curve.recall.tolist() == pytest.approx(recalls, rel=1e-12)
    assert curve.average_precision == pytest.approx(average, rel=1e-9, abs=1e-9)
    for threshold, abstained in zip(curve.thresholds, curve.abstained, strict=True):
        assert abstained == pytest.approx((na_probs > threshold).mean())


@moderate
@given(question_lists, st.floats(0, 1))
def test_applying_a_threshold_is_the_official_way(questions, threshold):
    (scores, na_probs, has_answer, _), (_, score_of, prob_of, has_of) = split(questions)
    expected = official_apply(score_of, prob_of, has_of, threshold)
    found = apply_threshold(scores, na_probs, has_answer, threshold)
    assert found.tolist() == list(expected.values())


@moderate
@given(question_lists)
def test_no_threshold_beats_the_best_and_distinct_probabilities_reach_it(questions):
    (scores, na_probs, has_answer, answered), _ = split(questions)
    best, threshold = best_threshold(scores, na_probs, has_answer, answered)
    for other in (-1.0, *na_probs, 2.0):
        mean = 100 * apply_threshold(scores, na_probs, has_answer, other).mean()
        assert mean <= best + 1e-9
    if len(set(na_probs)) == len(na_probs) and na_probs.min() > 0:
        mean = 100 * apply_threshold(scores, na_probs, has_answer, threshold).mean()
        assert mean == pytest.approx(best)


def test_nothing_to_sweep_over():
    empty = np.array([])
    with pytest.raises(ValueError, match="There are no question scores; give at least one."):
        best_threshold(empty, empty, empty.astype(bool), empty.astype(bool))


def test_no_answer_probability_is_bounded_and_rises_with_the_score():
    odds = np.array([-2000.0, -1.0, 0.0, 1.0, 2000.0])
    probabilities = no_answer_probability(odds)
    assert probabilities.tolist() == pytest.approx([0, 0.2689414, 0.5, 0.7310586, 1])


GOLDS = {"a": ["red cat"], "b": ["dog"], "c": [], "d": []}
PREDICTIONS = pd.DataFrame(
    {
        "id": ["d", "c", "b", "a"],
        "prediction_text": ["ox", "", "", "cat"],
        "score": -1.0,
        "answer_text": ["ox", "fox", "dog", "cat"],
        "no_answer_score": [1.0, 3.0, 0.5, -2.0],
    }
)


def test_rows_of_every_way_to_abstain():
    answers = candidates(GOLDS, PREDICTIONS)
    rows = {row["decision"]: row for row in abstention_rows(answers, answers)}
    assert list(rows) == [
        "greedy",
        "train articles",
        "best EM on validation",
        "best F1 on validation",
    ]
    greedy, best = rows["greedy"], rows["train articles"]
    assert (greedy["abstained"], greedy["abstained rightly"]) == (2, 1)
    assert (greedy["abstention precision"], greedy["abstention recall"]) == (50, 50)
    assert greedy["EM"] == 25
    assert greedy["F1"] == pytest.approx(100 * (2 / 3 + 1) / 4)
    assert best["threshold"] == no_answer_probability(np.array(0.5))
    assert (best["abstained"], best["abstention precision"], best["abstention recall"]) == (
        2,
        100,
        100,
    )
    assert best["F1"] == rows["best F1 on validation"]["F1"] == pytest.approx(100 * (2 / 3 + 3) / 4)
    assert best["HasAns F1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert best["NoAns F1"] == 100


def test_without_calibration_no_threshold_is_invented():
    rows = abstention_rows(candidates(GOLDS, PREDICTIONS), None)
    assert [row["decision"] for row in rows] == [
        "greedy",
        "best EM on validation",
        "best F1 on validation",
    ]


def test_a_question_without_prediction_is_named():
    with pytest.raises(ValueError, match="1 of 5 reference questions have no prediction .*'e'"):
        candidates(GOLDS | {"e": []}, PREDICTIONS)


def tabulate_and_plot(golds, parameters):
    answers = [{"text": texts, "answer_start": [0] * len(texts)} for texts in golds.values()]
    asked = Dataset.from_dict({"id": list(golds), "answers": answers})
    table, markdown, curve = tabulate_abstention(
        DatasetDict(validation=asked, calibration=asked), *[PREDICTIONS] * 4
    )
    questions = DatasetDict(validation=asked)
    figure = plot_abstention(curve, table, parameters.model, parameters.data, questions)
    return table, curve, figure


def test_the_curve_has_every_threshold_and_the_figure_draws_it(parameters):
    table, curve, figure = tabulate_and_plot(GOLDS, parameters)
    assert table["model"].unique().tolist() == ["baseline", "fine-tuned"]
    for _, rows in curve.groupby("model"):
        assert rows["abstained"].tolist() == [0.75, 0.5, 0.25, 0.0]
        assert rows["recall"].iloc[-1] == pytest.approx((1 + 2 / 3) / 2)
    lines = [trace for trace in figure.data if trace.mode != "markers"]
    assert [trace.name.split(" (")[0] for trace in lines] == ["baseline", "fine-tuned"]
    assert lines[0].x == pytest.approx([75, 50, 25, 0])
    (diamond,) = (t for t in figure.data if t.mode == "markers" and t.name.startswith("baseline"))
    assert diamond.x == (50,)


def test_without_answerable_questions_there_is_no_curve(parameters):
    table, curve, figure = tabulate_and_plot(dict.fromkeys(GOLDS, []), parameters)
    assert len(table) == 8
    assert curve.empty and not figure.data
