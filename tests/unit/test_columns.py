"""Targets and groups of data sets, found without reading an input."""

import numpy as np
import pytest
import torch
from datasets import Dataset as HuggingFaceDataset
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import reducr
from reducr.data import ExampleDataset
from reducr.training.columns import column_of, column_tensor, columns_of, length_of


class Files(Dataset):
    """Raises where an input is read."""

    def __init__(self, **columns):
        vars(self).update(columns)

    def __len__(self):
        return 4

    def __getitem__(self, position):
        raise AssertionError("An input was read.")


def refuse(rows):
    raise AssertionError("An input was read.")


TARGETS, GROUPS = [2, 0, 1, 1], [0, 1, 1, 0]
INPUTS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("dataset", "targets", "groups"),
    [
        (Files(targets=TARGETS), TARGETS, None),
        (Files(target=torch.tensor(TARGETS, dtype=torch.int32)), TARGETS, None),
        (Files(labels=np.array(TARGETS), group=GROUPS), TARGETS, GROUPS),
        (Files(label=tuple(TARGETS), groups=torch.tensor(GROUPS)), TARGETS, GROUPS),
        (Files(), None, None),
        (TensorDataset(INPUTS, torch.tensor(TARGETS)), TARGETS, None),
        (TensorDataset(torch.arange(4), INPUTS, torch.tensor(TARGETS)), TARGETS, None),
        (TensorDataset(torch.arange(4), INPUTS, torch.tensor(TARGETS), torch.tensor(GROUPS)), TARGETS, GROUPS),
        (TensorDataset(INPUTS, torch.tensor(TARGETS), torch.zeros(4)), None, None),  # (input, target, more)?
        (Subset(Files(targets=TARGETS, groups=GROUPS), [3, 0]), [1, 2], [0, 0]),
        (Subset(Subset(Files(targets=TARGETS), [3, 0, 1]), [2, 0]), [0, 1], None),
        (ConcatDataset([Files(targets=TARGETS), Subset(Files(labels=TARGETS), [0])]), [*TARGETS, 2], None),
        (ConcatDataset([Files(targets=TARGETS), Files()]), None, None),
        (ExampleDataset(INPUTS, torch.tensor(TARGETS), num_classes=3), TARGETS, TARGETS),
        (HuggingFaceDataset.from_dict({"label": TARGETS, "text": list("abcd")}), TARGETS, None),
        (
            HuggingFaceDataset.from_dict({"labels": TARGETS, "group": GROUPS}).with_transform(refuse),
            TARGETS,
            GROUPS,
        ),
        (HuggingFaceDataset.from_dict({"label": TARGETS}).with_format("torch").select([3, 0]), [1, 2], None),
    ],
)  # fmt: skip
def test_columns_of_data_sets(dataset, targets, groups):
    found = [column_of(dataset, kind) for kind in ("targets", "groups")]
    assert [None if column is None else column.tolist() for column in found] == [targets, groups]
    assert all(column is None or column.dtype == torch.int64 for column in found)


def test_groups_are_the_targets_unless_there_are_others():
    def lists(*arguments):
        return [None if column is None else column.tolist() for column in columns_of(*arguments, size=4)[1:]]

    assert lists(Files(targets=TARGETS), None, None) == [TARGETS, TARGETS]
    assert lists(Files(targets=TARGETS), None, GROUPS) == [TARGETS, GROUPS]
    assert lists(Files(targets=TARGETS), GROUPS, None) == [GROUPS, GROUPS]
    assert lists(Files(targets=[0.5, 1.0, 2.0, 0.0]), None, None) == [[0.5, 1.0, 2.0, 0.0], None]
    assert lists(Files(targets=torch.eye(4)), None, GROUPS) == [torch.eye(4).tolist(), GROUPS]
    assert lists(Files(), None, None) == [None, None]


@pytest.mark.parametrize(
    ("dataset", "kind", "message"),
    [
        (
            Files(targets=TARGETS, labels=TARGETS),
            "targets",
            r"Files has targets and labels: which are the targets\? Pass",
        ),
        (
            Files(targets=TARGETS, target_transform=len),
            "targets",
            "target_transform changes the targets when an example",
        ),
        (Files(targets=[0, 1]), "targets", r"`targets` must have one row for each of the 4 examples; got \(2,\)\."),
        (
            Files(groups=[0.0, 1.0, 0.0, 1.0]),
            "groups",
            r"`groups` must hold one integer per example; got torch.float64",
        ),
        (
            Files(targets=list("abcd")),
            "targets",
            "`targets` must hold one number per example; got list of other things",
        ),
    ],
)
def test_columns_that_cannot_be_right(dataset, kind, message):
    with pytest.raises(ValueError, match=message):
        column_of(dataset, kind)


def test_a_column_is_on_the_cpu_and_without_gradients():
    column = column_tensor(torch.ones(4, 2, requires_grad=True), "targets", size=4)
    assert not column.requires_grad
    assert column.shape == (4, 2)


def test_only_map_style_data_sets_have_a_length():
    assert length_of(Files()) == 4
    with pytest.raises(TypeError, match="must be a map-style data set, with a length and positions; got generator"):
        length_of(x for x in range(3))
    with pytest.raises(ValueError, match=r"The data set is empty\."):
        length_of([])


@pytest.mark.parametrize(
    ("dataset", "index"),
    [
        (Files(targets=TARGETS), [0, 1, 2, 3]),
        ([1, 2, 3, 4], [0, 1, 2, 3]),  # has a method called index
        (TensorDataset(torch.tensor([7, 5, 6, 4]), INPUTS, torch.tensor(TARGETS)), [7, 5, 6, 4]),
        (Subset(TensorDataset(torch.tensor([7, 5, 6, 4]), INPUTS, torch.tensor(TARGETS)), [3, 1]), [4, 5]),
        (Subset(Files(targets=TARGETS), [3, 1]), [0, 1]),
        (Subset(reducr.indexed(Files(targets=TARGETS)), [3, 1]), [3, 1]),
        (reducr.indexed(Subset(Files(targets=TARGETS), [3, 1])), [0, 1]),
        (HuggingFaceDataset.from_dict({"label": TARGETS, "idx": [9, 8, 7, 6]}), [9, 8, 7, 6]),
    ],
)
def test_the_index_is_the_one_that_the_data_set_yields(dataset, index):
    assert columns_of(dataset, None, None, size=len(dataset)).index.tolist() == index


def test_an_indexed_data_set_has_the_columns_of_the_one_inside():
    inner = Subset(Files(targets=TARGETS, groups=GROUPS), [3, 0])
    columns = columns_of(reducr.indexed(inner), None, None, size=2)
    assert [column.tolist() for column in columns] == [[0, 1], [1, 2], [0, 0]]
