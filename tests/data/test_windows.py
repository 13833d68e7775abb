"""Prompts and context windows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.data.windows import (
    answer_in_window,
    split_template,
    window_spans,
)

many = settings(max_examples=200)


@pytest.mark.parametrize(
    ("template", "question", "expected"),
    [
        ("question: {question} context: {context}", "Who?", ("question: Who? context:", "")),
        ("{context}\n\nQ: {question}", "Who?", ("", "Q: Who?")),
        ("Read {context} and tell: {question} !", "Who?", ("Read", "and tell: Who? !")),
        ("{question} {context}", "What is {context}?", ("What is {context}?", "")),
        ("{question} {context}", "What is {question}?", ("What is {question}?", "")),
    ],
)
def test_split_template(template, question, expected):
    assert split_template(template, question) == expected


@many
@given(n=st.integers(0, 400), size=st.integers(1, 90), stride=st.integers(0, 89))
def test_windows_cover_every_token_and_overlap_by_the_stride(n, size, stride):
    if size <= stride:
        with pytest.raises(ValueError, match=f"{size} tokens cannot overlap .* by {stride}"):
            window_spans(n, size, stride)
        return
    spans = window_spans(n, size, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == n
    assert {i for start, end in spans for i in range(start, end)} == set(range(n))
    assert all(end - start == size for start, end in spans[:-1])
    assert spans[-1][1] - spans[-1][0] <= size
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert end - start == stride
    assert len(spans) == 1 or spans[-2][1] < n


@many
@given(data=st.data(), n=st.integers(1, 300), size=st.integers(2, 60))
def test_what_is_no_longer_than_the_stride_is_whole_in_some_window(data, n, size):
    stride = data.draw(st.integers(1, size - 1))
    length = data.draw(st.integers(1, min(stride, n)))
    start = data.draw(st.integers(0, n - length))
    spans = window_spans(n, size, stride)
    assert any(left <= start and start + length <= right for left, right in spans)


@pytest.mark.parametrize(
    ("texts", "starts", "window", "expected"),
    [
        (["abc"], [10], (10, 13), "abc"),
        (["abc"], [10], (11, 20), None),
        (["abc"], [10], (0, 12), None),
        (["abc"], [10], (14, 20), None),
        (["abc", "de"], [10, 30], (20, 40), "de"),
        (["abc", "bc"], [10, 11], (0, 40), "abc"),
        ([], [], (0, 40), None),
    ],
)
def test_answer_in_window(texts, starts, window, expected):
    assert answer_in_window(texts, starts, window) == expected
