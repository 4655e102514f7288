import torch

from reducr.batch import Batch
from reducr.irreducible.joint_labels import JointLabels


def batch(targets, groups):
    return Batch(torch.arange(len(targets)), torch.zeros(len(targets), 1), targets, groups)


def test_groups_that_equal_the_targets():
    targets = torch.tensor([0, 1, 2, 1])
    joint_labels = JointLabels.of(targets, targets, num_classes=3, num_groups=3)
    assert (joint_labels.num_labels, joint_labels.group_of_target, joint_labels.num_joint_groups) == (3, None, None)
    assert torch.equal(joint_labels.labels(batch(targets, targets)), targets)


def test_groups_that_follow_from_the_target():
    targets = torch.tensor([0, 1, 2, 3, 1])
    joint_labels = JointLabels.of(targets, targets // 2, num_classes=4, num_groups=2)
    assert joint_labels.num_labels == 4
    assert joint_labels.group_of_target.tolist() == [0, 0, 1, 1]
    assert joint_labels.num_joint_groups is None


def test_a_permutation_of_the_targets_is_not_mistaken_for_them():
    targets = torch.tensor([0, 1, 2])
    joint_labels = JointLabels.of(targets, torch.tensor([1, 2, 0]), num_classes=3, num_groups=3)
    assert joint_labels.group_of_target.tolist() == [1, 2, 0]


def test_groups_that_do_not_follow_from_the_target():
    targets, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 2])
    joint_labels = JointLabels.of(targets, groups, num_classes=2, num_groups=3)
    assert (joint_labels.num_labels, joint_labels.num_joint_groups) == (6, 3)
    assert joint_labels.labels(batch(targets, groups)).tolist() == [0, 2, 4, 5]


def test_a_target_absent_from_the_data_makes_the_labels_joint():
    """The group of that target is unknown."""
    targets = torch.tensor([0, 1])
    assert JointLabels.of(targets, torch.tensor([0, 0]), num_classes=3, num_groups=2).num_joint_groups == 2
