import math

import pytest
import torch
from torch import nn

from reducr.batch import Batch
from reducr.irreducible import IrreducibleObjective

LOG2, LOG3 = math.log(2), math.log(3)


class Constant(nn.Module):
    """Returns the logits it was created with."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs):
        return self.logits


def batch(targets, groups=None):
    targets = torch.tensor(targets)
    groups = targets if groups is None else torch.tensor(groups)
    return Batch(torch.arange(len(targets)), torch.zeros(len(targets), 1), targets, groups)


def target_of(batch):
    return batch.target


# losses log 2, log 4, log 4
LOGITS = [[0.0, 0.0], [LOG3, 0.0], [0.0, LOG3]]


def test_the_plain_objective_is_the_mean_loss():
    loss = IrreducibleObjective(target_of)(Constant(LOGITS), batch([0, 1, 0])).detach()
    assert float(loss) == pytest.approx((LOG2 + 2 * math.log(4)) / 3)


@pytest.mark.parametrize(("normalisation", "normaliser"), [("weights", 1 + 5 + 1), ("points", 3)])
def test_examples_of_the_weighted_group_count_more(normalisation, normaliser):
    objective = IrreducibleObjective(
        target_of, weighted_groups=[1], gradient_weight=5.0, weight_normalisation=normalisation
    )
    loss = objective(Constant(LOGITS), batch([0, 1, 0])).detach()
    assert float(loss) == pytest.approx((LOG2 + 5 * math.log(4) + math.log(4)) / normaliser)


def test_the_weight_follows_the_group_not_the_target():
    objective = IrreducibleObjective(target_of, weighted_groups=[7], gradient_weight=2.0)
    loss = objective(Constant(LOGITS), batch([0, 1, 0], groups=[7, 3, 3])).detach()
    assert float(loss) == pytest.approx((2 * LOG2 + 2 * math.log(4)) / 4)


@torch.no_grad()
def test_the_loss_is_the_sum_over_heads():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2, 3, generator=generator)
    examples = batch([0, 1, 2, 0, 1, 2])
    both = IrreducibleObjective(target_of, weighted_groups=[2, 0], gradient_weight=4.0)
    single = [
        IrreducibleObjective(target_of, weighted_groups=[group], gradient_weight=4.0)(
            Constant(logits[:, head].tolist()), examples
        )
        for head, group in enumerate([2, 0])
    ]
    weighted_sum, normaliser = both.sums(Constant(logits.tolist()), examples)
    assert (weighted_sum / normaliser).tolist() == pytest.approx([float(loss) for loss in single])
    assert float(both(Constant(logits.tolist()), examples)) == pytest.approx(sum(float(loss) for loss in single))


def test_each_head_has_the_gradient_of_its_own_loss():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 2, 3, generator=generator).tolist()
    examples, model = batch([0, 1, 2, 1]), Constant(logits)
    IrreducibleObjective(target_of, weighted_groups=[0, 1])(model, examples).backward()
    single = Constant([row[1] for row in logits])
    IrreducibleObjective(target_of, weighted_groups=[1])(single, examples).backward()
    assert torch.allclose(model.logits.grad[:, 1], single.logits.grad)


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match=r"gradient_weight must be a finite number of at least 1.*got 0.5"):
        IrreducibleObjective(target_of, gradient_weight=0.5)
    with pytest.raises(ValueError, match="weight_normalisation must be one of weights, points; got 'sum'"):
        IrreducibleObjective(target_of, weight_normalisation="sum")
