"""Where the parts of a batch are: the usual structures by themselves, any other by a spec."""

import re
from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from reducr.batch import BatchSpec

INDEX, INPUT = torch.tensor([7, 8, 9]), torch.arange(6.0).reshape(3, 2)
TARGET, GROUP = torch.tensor([0, 1, 1]), torch.tensor([2, 2, 0])


class Named(NamedTuple):
    input: Any
    target: Any
    group: Any


class Row(NamedTuple):
    pixels: Any
    label: Any


@dataclass
class Sample:
    idx: Any
    inputs: Any
    labels: Any


class Plain:
    """Neither mapping nor dataclass: its parts are attributes."""

    def __init__(self):
        self.x, self.y = INPUT, TARGET


@pytest.mark.parametrize(
    ("batch", "index", "group"),
    [
        ((INPUT, TARGET), None, TARGET),
        ([INPUT, TARGET], None, TARGET),
        ((INDEX, INPUT, TARGET), INDEX, TARGET),
        ([INDEX, INPUT, TARGET], INDEX, TARGET),
        ((INDEX, INPUT, TARGET, GROUP), INDEX, GROUP),
        ({"input": INPUT, "target": TARGET}, None, TARGET),
        ({"inputs": INPUT, "targets": TARGET, "groups": GROUP}, None, GROUP),
        ({"input": INPUT, "label": TARGET, "index": INDEX}, INDEX, TARGET),
        (UserDict({"input": INPUT, "labels": TARGET, "idx": INDEX, "group": GROUP}), INDEX, GROUP),
        (Named(INPUT, TARGET, GROUP), None, GROUP),
        (Sample(INDEX, INPUT, TARGET), INDEX, TARGET),
    ],
)
def test_the_usual_structures(batch, index, group):
    read = BatchSpec.of(batch).read(batch)
    assert read.input is INPUT
    assert read.target is TARGET
    assert read.index is index
    assert read.group is group


def test_the_input_of_a_dict_is_all_its_other_tensors():
    batch = {
        "input_ids": INPUT, "attention_mask": INPUT, "labels": TARGET, "idx": INDEX, "group": GROUP, "text": ["a"] * 3,
        "size": 3,
    }  # fmt: skip
    read = BatchSpec.of(batch).read(batch)
    assert read.input == {"input_ids": INPUT, "attention_mask": INPUT}
    assert (read.target, read.index, read.group) == (TARGET, INDEX, GROUP)


def test_the_first_of_several_usual_names_in_the_order_of_the_batch():
    assert BatchSpec.of({"labels": TARGET, "target": TARGET, "x": INPUT}).target == "labels"


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((INPUT,), "a tuple of 1"),
        ([INPUT] * 5, "a list of 5"),
        ((), "a tuple of 0"),
        (INPUT, "a Tensor"),
        ("text", "a str"),
        (None, "a NoneType"),
        (Plain(), "a Plain"),
        ({"x": INPUT, "y": TARGET}, "a dict with x, y"),
        ({}, "a dict with "),
        ({0: INPUT, 1: TARGET}, "a dict with 0, 1"),
        (Row(INPUT, TARGET), "a Row with pixels, label"),
    ],
)
def test_any_other_structure_is_refused_by_what_it_is(batch, found):
    message = (
        f"Cannot tell which part of the batch is the target: it is {found}. Pass `spec=reducr.BatchSpec(input=..., "
        "target=..., index=..., group=...)`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSpec.of(batch)


NESTED = {"views": [INPUT, INPUT], "meta": {"ids": INDEX, "where": (GROUP, "north")}, "y": {"class": TARGET}}


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        (BatchSpec(input=("views", 1), target=("y", "class"), index=("meta", "ids"), group=("meta", "where", 0)),
         NESTED),
        (
            BatchSpec(
                input=lambda batch: batch["views"][0],
                target=lambda batch: batch["y"]["class"],
                index=lambda batch: batch["meta"]["ids"],
                group=lambda batch: batch["meta"]["where"][0],
            ),
            NESTED,
        ),
        (BatchSpec(input=-1, target=0, index=1, group=2), [TARGET, INDEX, GROUP, INPUT]),
        (BatchSpec(input="inputs", target="labels", index="idx", group=lambda _: GROUP), Sample(INDEX, INPUT, TARGET)),
        (BatchSpec(input="x", target="y", index=lambda _: INDEX, group=lambda _: GROUP), Plain()),
        (BatchSpec(input=0, target=1, index=2, group=3), {0: INPUT, 1: TARGET, 2: INDEX, 3: GROUP}),
        (BatchSpec(input=("pixels", "data"), target="label", index=lambda _: INDEX, group=lambda _: GROUP),
         Row({"data": INPUT}, TARGET)),
    ],
)  # fmt: skip
def test_entries_are_positions_keys_attributes_paths_and_functions(spec, batch):
    read = spec.read(batch)
    assert torch.equal(read.input, INPUT)
    assert (read.target, read.index, read.group) == (TARGET, INDEX, GROUP)


def test_targets_may_be_anything_with_one_row_for_each_point():
    soft = torch.rand(3, 4)
    read = BatchSpec(input=0, target=1, group=2).read((INPUT, soft, GROUP))
    assert read.target is soft


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "y"},
            "The batch has no target at 'y': there is no 'y' in a dict with ['x', 'label', 'inner']. Say",
        ),
        (
            {"input": "pixels"},
            "The batch has no input at 'pixels': there is no 'pixels' in a dict with ['x', 'label', ",
        ),
        ({"index": ("inner", 4)}, "The batch has no index at ('inner', 4): there is no 4 in a list with no names."),
        (
            {"group": ("x", "site")},
            "The batch has no group at ('x', 'site'): there is no 'site' in a Tensor with no names",
        ),
        ({"index": ("label", 9)}, "The batch has no index at ('label', 9): there is no 9 in a Tensor with no names."),
        ({"group": 1.5}, "The batch has no group at 1.5: there is no 1.5 in a dict"),
        (
            {"group": None, "index": ("inner", None)},
            "The batch has no index at ('inner', None): there is no None in a list",
        ),
    ],
)
def test_an_entry_that_is_not_there_is_named(options, message):
    batch = {"x": INPUT, "label": TARGET, "inner": [INDEX]}
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSpec(**{"input": "x", "target": "label", **options}).read(batch)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"target": [0, 1, 1]}, "A batch's target must be a tensor with one row per example; got list."),
        ({"target": torch.tensor(1)}, "A batch's target must be a tensor with one row per example; got shape ()."),
        ({"target": None}, "A batch's target must be a tensor with one row per example; got NoneType."),
        ({"index": ["a", "b", "c"]}, "A batch's index must be a tensor with one row per example; got list."),
        ({"index": torch.tensor([1, 2])}, "index must hold one number for each of its 3 examples; got shape (2,)."),
        ({"group": torch.zeros(3, 1)}, "group must hold one number for each of its 3 examples; got shape (3, 1)."),
        ({"group": torch.tensor(1)}, "A batch's group must be a tensor with one row per example; got shape ()."),
    ],
)
def test_parts_of_another_kind_are_refused(parts, message):
    batch = {"input": INPUT, "target": TARGET, "index": INDEX, "group": GROUP, **parts}
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSpec.of(batch).read(batch)


def test_the_input_is_left_out_for_dicts_only():
    message = "BatchSpec needs an `input` unless batches are dicts, whose other entries it then is; got a tuple."
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSpec(target=1).read((INPUT, TARGET))


def test_a_function_of_the_batch_raises_what_it_raises():
    with pytest.raises(ZeroDivisionError):
        BatchSpec(input=0, target=lambda batch: 1 / 0).read((INPUT, TARGET))
