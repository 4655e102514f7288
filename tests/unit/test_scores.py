import math

import pytest
import torch

from reducr import functional


def test_excess_loss_by_hand():
    loss, table = torch.tensor([1.0, 0.25]), torch.tensor([[0.5, 2.0], [0.0, 0.25]])
    assert functional.excess_loss(loss, table).tolist() == [[0.5, -1.0], [0.25, 0.0]]
    assert functional.excess_loss(loss, table, clip=True).tolist() == [[0.5, 0.0], [0.25, 0.0]]
    assert functional.excess_loss(loss, table[:, 0]).tolist() == [0.5, 0.25]
    assert functional.excess_loss(loss, None).tolist() == [1.0, 0.25]
    assert functional.excess_loss(None, table).tolist() == [[-0.5, -2.0], [-0.0, -0.25]]


def test_excess_loss_needs_a_term():
    with pytest.raises(ValueError, match="needs the model loss or the irreducible loss; both are None"):
        functional.excess_loss(None, None)


@pytest.mark.parametrize(
    ("model", "irreducible", "expected"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ],
)
def test_excess_loss_is_in_float32_or_better(model, irreducible, expected):
    excess = functional.excess_loss(torch.ones(2, dtype=model), torch.ones(2, 3, dtype=irreducible))
    assert excess.dtype == expected
    assert excess.tolist() == [[0.0] * 3] * 2


def test_reducr_score_by_hand():
    excess = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert functional.reducr_score(excess, weights).tolist() == [2.5, 0.5]
    assert functional.reducr_score(excess, weights).dtype == torch.float32


def test_group_payoff_by_hand():
    excess, holdout = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, 10.0])
    per_point = functional.group_payoff(excess, holdout, holdout_weighting="per_point")
    per_step = functional.group_payoff(excess, holdout, holdout_weighting="per_step")
    without = functional.group_payoff(excess, None, holdout_weighting="per_point")
    assert per_point.tolist() == [9 - 1.5, 12 - 30]
    assert per_step.tolist() == [9 - 0.5, 12 - 10]
    assert without.tolist() == [9.0, 12.0]
    assert {payoff.dtype for payoff in (per_point, per_step, without)} == {torch.float64}


def test_group_payoff_sums_float32_in_float64():
    excess = torch.tensor([[2.0**24], [1.0], [1.0]])
    assert functional.group_payoff(excess, None, holdout_weighting="per_point").tolist() == [2.0**24 + 2]


def test_max_min_payoff_by_hand():
    excess = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert functional.max_min_payoff(excess, torch.tensor([0.5, 1.0])).tolist() == [0.5, -1.0]


def test_gradient_norm_by_hand():
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0], [-50.0, 50.0]], dtype=torch.float64)
    norms = functional.gradient_norm(logits, torch.tensor([0, 0, 0]))
    assert norms.tolist() == pytest.approx([math.sqrt(0.5), 0.0, math.sqrt(2)], abs=1e-12)


def test_entropies_by_hand():
    sure = [[60.0, -60.0], [-60.0, 60.0]]
    samples = torch.tensor([sure, sure[::-1]], dtype=torch.float64)
    assert functional.predictive_entropy(samples).tolist() == pytest.approx([math.log(2)] * 2)
    assert functional.conditional_entropy(samples).tolist() == pytest.approx([0.0] * 2, abs=1e-12)
    assert functional.mutual_information(samples).tolist() == pytest.approx([math.log(2)] * 2)


def test_equal_samples_tell_nothing_about_the_parameters():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = logits.expand(3, -1, -1)
    assert functional.mutual_information(samples).tolist() == pytest.approx([0.0] * 5, abs=1e-12)
    torch.testing.assert_close(functional.predictive_entropy(samples), functional.predictive_entropy(logits))


def test_an_impossible_class_adds_no_entropy():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    assert functional.predictive_entropy(logits).tolist() == pytest.approx([math.log(2)])


EQUAL_EXAMPLES = {
    "reducr_score": lambda values: functional.reducr_score(values, torch.linspace(0.1, 2.0, values.shape[1])),
    "predictive_entropy": lambda values: functional.predictive_entropy(torch.stack([values, -values, values / 3])),
    "conditional_entropy": lambda values: functional.conditional_entropy(torch.stack([values, -values, values / 3])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_columns", [5, 12, 17, 33])
@pytest.mark.parametrize("name", EQUAL_EXAMPLES)
def test_equal_examples_have_equal_scores_in_every_batch_and_layout(name, num_columns, dtype):
    """To the last bit, so that ties stay ties: a plain sum rounds differently in other batches and layouts."""
    generator = torch.Generator().manual_seed(num_columns)
    row = torch.rand(num_columns, generator=generator, dtype=dtype)
    scores = set()
    for size in (1, 2, 5, 9, 33):
        for position in {0, size // 2, size - 1}:
            values = torch.rand(size, num_columns, generator=generator, dtype=dtype)
            values[position] = row
            for layout in (values, values.t().contiguous().t()):
                scores.add(float(EQUAL_EXAMPLES[name](layout)[position]))
    assert len(scores) == 1
