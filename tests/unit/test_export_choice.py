"""Which examples an export keeps: against plain loops, and by the laws that its docstrings promise."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from reducr.exports import (
    ORDERS,
    QUOTAS,
    best_first,
    chosen_examples,
    class_quotas,
    suspected_label_errors,
)

EXAMPLES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, np.nan])), min_size=1, max_size=40
)


@given(EXAMPLES)
def test_orders_are_those_of_plain_sorting(examples):
    times, score = (np.array([example[place] for example in examples]) for place in (1, 2))
    plain = [-np.inf if np.isnan(value) else value for value in score]
    by_times = sorted(range(len(examples)), key=lambda i: (-times[i], -plain[i], i))
    by_score = sorted(range(len(examples)), key=lambda i: (-plain[i], -times[i], i))
    by_both = sorted(range(len(examples)), key=lambda i: (by_times.index(i) + by_score.index(i), i))
    for order, expected in zip(ORDERS, (by_times, by_score, by_both), strict=True):
        assert best_first(times, score, order=order).tolist() == expected


@given(EXAMPLES, st.sampled_from(QUOTAS), st.integers(0, 3), st.data())
def test_an_export_keeps_as_many_examples_as_asked_for(examples, quotas, at_least, data):
    target, times, score = (np.array([example[place] for example in examples]) for place in range(3))
    ranked = best_first(times, score, order="times")
    available = np.bincount(target, minlength=4)
    must = np.minimum(at_least, available)
    fixed = data.draw(st.dictionaries(st.integers(0, 3), st.integers(0, 3)))
    assume(all(count <= available[number] for number, count in fixed.items()))
    is_fixed = np.array([number in fixed for number in range(4)])
    least = sum(fixed.values()) + must[~is_fixed].sum()
    num_chosen = data.draw(st.integers(int(least), int(sum(fixed.values()) + available[~is_fixed].sum())))
    chosen = chosen_examples(
        ranked, target, num_chosen=num_chosen, num_classes=4, quotas=quotas, num_times_selected=times,
        at_least=at_least, fixed=fixed,
    )  # fmt: skip
    counts = np.bincount(target[chosen], minlength=4)
    assert len(set(chosen.tolist())) == len(chosen) == num_chosen
    assert chosen.tolist() == [i for i in ranked if i in chosen]  # best first
    assert all(counts[number] == count for number, count in fixed.items())
    assert (counts >= must)[~is_fixed].all()
    for number in range(4):  # the best of each class
        assert [i for i in chosen if target[i] == number] == [i for i in ranked if target[i] == number][
            : counts[number]
        ]
    if quotas == "equal":
        open_counts = counts[~is_fixed & (counts < available)]
        assert len(open_counts) == 0 or open_counts.max() <= max(open_counts.min() + 1, at_least)
    if quotas == "none" and not fixed and not at_least:
        assert chosen.tolist() == ranked[:num_chosen].tolist()


def test_quotas_in_proportion_are_websters():
    shares = np.array([53, 24, 23])
    counts = np.zeros(3, dtype=int)
    for _ in range(7):
        counts[np.argmax(shares / (2 * counts + 1))] += 1
    assert class_quotas(7, available=np.array([9, 9, 9]), share=shares).tolist() == counts.tolist() == [3, 2, 2]
    assert class_quotas(70, available=np.array([90, 90, 90]), share=shares).tolist() == [37, 17, 16]


@pytest.mark.parametrize(
    ("num_chosen", "options", "message"),
    [
        (4, {"fixed": {1: 3}}, "The quota of class 1 is 3, but 2 of its examples can be kept"),
        (2, {"at_least": 1}, "with at least 1 per class and quotas for 0 of 3 classes, an export holds 3 to 12"),
        (4, {"fixed": {0: 1, 1: 1, 2: 1}}, "quotas for 3 of 3 classes, an export holds 3 to 3"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_add_up(num_chosen, options, message):
    with pytest.raises(ValueError, match=message):
        class_quotas(num_chosen, available=np.array([5, 2, 5]), share=np.ones(3), **options)


def test_unknown_orders_and_quotas():
    with pytest.raises(ValueError, match=r"unknown order 'scores'. Did you mean 'score'"):
        best_first(np.zeros(1), np.zeros(1), order="scores")
    with pytest.raises(ValueError, match=r"unknown quotas 'equals'. Did you mean 'equal'"):
        chosen_examples(
            np.arange(1), np.zeros(1, dtype=int), num_chosen=1, num_classes=1, quotas="equals",
            num_times_selected=np.ones(1),
        )  # fmt: skip


def test_a_label_is_suspected_where_both_models_find_it_less_likely_than_a_guess():
    probability = torch.tensor([[0.09, 0.09], [0.11, 0.09], [0.09, 0.11], [0.5, 0.5]])
    model_loss, irreducible_loss = -probability.log().T
    suspected = suspected_label_errors(model_loss, irreducible_loss, num_classes=10)
    assert suspected.tolist() == [True, False, False, False]
