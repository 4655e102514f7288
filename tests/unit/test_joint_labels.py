import torch

from reducr.batch import Batch
from reducr.irreducible.joint_labels import JointLabels


def batch(targets, groups):
    return Batch(torch.arange(len(targets)), torch.zeros(len(targets), 1), targets, groups)


def test_groups_that_are_the_targets():
    targets = torch.tensor([0, 1, 2, 1])
    outcomes = JointLabels.of(targets, targets, num_classes=3, num_groups=3)
    assert (outcomes.num_outcomes, outcomes.group_of_target, outcomes.num_joint_groups) == (3, None, None)
    assert torch.equal(outcomes.outcome(batch(targets, targets)), targets)


def test_groups_that_follow_from_the_target():
    targets = torch.tensor([0, 1, 2, 3, 1])
    outcomes = JointLabels.of(targets, targets // 2, num_classes=4, num_groups=2)
    assert outcomes.num_outcomes == 4
    assert outcomes.group_of_target.tolist() == [0, 0, 1, 1]
    assert outcomes.num_joint_groups is None


def test_a_permutation_of_the_targets_is_not_mistaken_for_them():
    targets = torch.tensor([0, 1, 2])
    outcomes = JointLabels.of(targets, torch.tensor([1, 2, 0]), num_classes=3, num_groups=3)
    assert outcomes.group_of_target.tolist() == [1, 2, 0]


def test_groups_that_do_not_follow():
    targets, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 2])
    outcomes = JointLabels.of(targets, groups, num_classes=2, num_groups=3)
    assert (outcomes.num_outcomes, outcomes.num_joint_groups) == (6, 3)
    assert outcomes.outcome(batch(targets, groups)).tolist() == [0, 2, 4, 5]


def test_a_target_absent_from_the_data_makes_the_outcomes_joint():
    """Its group cannot be known."""
    targets = torch.tensor([0, 1])
    assert JointLabels.of(targets, torch.tensor([0, 0]), num_classes=3, num_groups=2).num_joint_groups == 2
