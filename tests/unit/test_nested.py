import re
import types
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from reducr.batch.nested import index_batch, send_to_device

POSITIONS = torch.tensor([3, 0])
CPU = torch.device("cpu")


def rows(*shape, dtype=torch.float32):
    """Four points whose rows are told apart by their number."""
    numbers = torch.arange(4).to(dtype).reshape(4, *(1 for _ in shape))
    return numbers.expand(4, *shape).clone()


def take(batch):
    return index_batch(batch, POSITIONS, num_examples=4)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    note: Any = "as it was"


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    inner: Any = None


@dataclass
class Counted:
    x: torch.Tensor
    num_made: int = field(init=False, default=0)

    def __post_init__(self):
        self.num_made += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.uint8, torch.bool])
def test_rows_of_tensors_in_the_order_of_the_positions(dtype):
    tensor = rows(2, dtype=dtype)
    assert take(tensor).dtype == dtype
    assert torch.equal(take(tensor), tensor[[3, 0]])
    before = tensor.clone()
    take(tensor).zero_()
    assert torch.equal(tensor, before)


def test_arrays_and_lists_of_one_entry_for_each_point():
    batch = {
        "array": np.arange(8).reshape(4, 2),
        "objects": np.array(["a", None, 3, "d"], dtype=object),
        "list": ["a", "b", "c", "d"],
        "tuple": ("a", "b", "c", "d"),
        "numbers": [1.5, 2.5, 3.5, 4.5],
        "dicts": [{"id": number} for number in range(4)],
        "ragged": [torch.zeros(number) for number in range(4)],
    }
    selected = take(batch)
    assert selected["array"].tolist() == [[6, 7], [0, 1]]
    assert selected["objects"].tolist() == ["d", "a"]
    assert selected["list"] == ["d", "a"]
    assert selected["tuple"] == ("d", "a")
    assert selected["numbers"] == [4.5, 1.5]
    assert selected["dicts"] == [{"id": 3}, {"id": 0}]
    assert [len(entry) for entry in selected["ragged"]] == [3, 0]


def test_containers_of_rows_stay_containers():
    batch = {
        "two views": [rows(2), rows(3)],
        "columns of texts": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
        "four of four": [rows(), rows(), rows(), rows()],
        "with a gap": (rows(2), None),
        "with a name": ["pixels", rows(2)],
        "four with gaps": [rows(), None, rows(), "note"],
        "of dicts": [{"x": rows()}, {"x": rows(2), "size": 7}],
    }
    selected = take(batch)
    assert [tuple(view.shape) for view in selected["two views"]] == [(2, 2), (2, 3)]
    assert selected["columns of texts"] == [["d", "a"], ["h", "e"]]
    assert [view.tolist() for view in selected["four of four"]] == [[3.0, 0.0]] * 4
    gaps = selected["four with gaps"]
    assert (gaps[0].tolist(), gaps[1], gaps[2].tolist(), gaps[3]) == ([3.0, 0.0], None, [3.0, 0.0], "note")
    assert selected["with a gap"][0].tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert selected["with a gap"][1] is None
    assert selected["with a name"][0] == "pixels"
    assert selected["of dicts"][1]["x"].tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert selected["of dicts"][1]["size"] == 7


def test_columns_as_the_default_collate_makes_them():
    items = [
        (number, f"text {number}", (torch.tensor(number), f"in {number}"), {"x": np.float32(number)}, [number, number])
        for number in range(4)
    ]
    index, text, inner, entries, columns = take(default_collate(items))
    assert index.tolist() == [3, 0]
    assert text == ("text 3", "text 0")
    assert inner[0].tolist() == [3, 0]
    assert inner[1] == ("in 3", "in 0")
    assert entries["x"].tolist() == [3.0, 0.0]
    assert [column.tolist() for column in columns] == [[3, 0], [3, 0]]


@pytest.mark.parametrize(
    "value",
    ["a text", b"bytes", 3, 0.1, 1j, True, None, torch.tensor(2.0), np.float64(1.5), np.array(7), np.str_("text")],
)
def test_what_belongs_to_the_batch_as_a_whole_is_shared(value):
    assert take({"x": rows(), "note": value})["note"] is value
    assert take((rows(), value))[1] is value


def test_named_tuples_stay_what_they_are():
    point = namedtuple("point", ["a", "b", "c", "d"])
    selected = take(Pair(rows(), Pair({"x": rows(2)}, "note")))
    assert type(selected) is type(selected.second) is Pair
    assert selected.first.tolist() == [3.0, 0.0]
    assert selected.second.first["x"].shape == (2, 2)
    assert selected.second.second == "note"
    # as many fields as points, which are fields all the same
    assert take({"x": rows(), "names": point("a", "b", "c", None)})["names"] == point("a", "b", "c", None)


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, BatchEncoding])
def test_mappings_stay_what_they_are(kind):
    batch = kind({"x": rows(2), "inner": kind({"y": rows()}), "text": ["a", "b", "c", "d"]})
    selected = take(batch)
    assert type(selected) is type(selected["inner"]) is kind
    assert list(selected) == ["x", "inner", "text"]
    assert selected["inner"]["y"].tolist() == [3.0, 0.0]
    assert selected["text"] == ["d", "a"]
    assert batch["x"].shape == (4, 2)
    assert batch["inner"]["y"].shape == (4,)


def test_a_mapping_that_cannot_be_changed_becomes_a_dict():
    selected = take(types.MappingProxyType({"x": rows()}))
    assert type(selected) is dict
    assert selected["x"].tolist() == [3.0, 0.0]


def test_outputs_of_transformers_are_mappings_too():
    selected = take(SequenceClassifierOutput(logits=rows(2), hidden_states=(rows(3), rows(1))))
    assert type(selected) is SequenceClassifierOutput
    assert selected.logits.tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert [tuple(states.shape) for states in selected.hidden_states] == [(2, 3), (2, 1)]


def test_dataclasses_stay_what_they_are_frozen_or_slotted():
    batch = Slotted(rows(2), inner=[Frozen(rows()), Frozen(rows(1), note=None)])
    selected = take(batch)
    assert type(selected) is Slotted
    assert selected.x.tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert [type(inner) for inner in selected.inner] == [Frozen, Frozen]
    assert [tuple(inner.x.shape) for inner in selected.inner] == [(2,), (2, 1)]
    assert [inner.note for inner in selected.inner] == ["as it was", None]
    assert batch.inner[0].x.shape == (4,)


def test_a_dataclass_is_copied_not_made_anew():
    batch = Counted(rows())
    batch.num_made = 5
    assert take(batch).num_made == 5


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((4, 3, 5, 6), torch.channels_last), ((4, 3, 2, 5, 6), torch.channels_last_3d)],
)
def test_channels_last_stays_channels_last(shape, memory_format):
    images = torch.randn(shape).to(memory_format=memory_format)
    selected = take([images, images.contiguous()])
    assert selected[0].is_contiguous(memory_format=memory_format)
    assert selected[1].is_contiguous()
    assert torch.equal(selected[0], images[[3, 0]])


def test_tensors_that_are_expanded_or_carry_gradients():
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    selected = take({"expanded": tensor.expand(4, 2), "strided": rows(2, 6)[:, :, ::2].transpose(1, 2)})
    assert selected["expanded"].tolist() == [[1.0, 2.0]] * 2
    assert selected["expanded"].requires_grad
    assert selected["strided"].shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("batch", "place", "size"),
    [
        ({"x": rows(), "y": torch.zeros(5)}, "batch['y']", 5),
        ([rows(), torch.zeros(3, 2)], "batch[1]", 3),
        ({"views": [rows(), torch.zeros(5)]}, "batch['views'][1]", 5),
        ({"views": (None, torch.zeros(1))}, "batch['views'][1]", 1),
        (Frozen(rows(), note=["a", "b"]), "batch.note", 2),
        (Pair(rows(), Pair(1, np.zeros(3))), "batch.second.second", 3),
        ({"a": {"b": {"c": ("a", "b", "c")}}}, "batch['a']['b']['c']", 3),
        ({"texts": []}, "batch['texts']", 0),
        ({"texts": [["a", "b"], ["c"]]}, "batch['texts']", 2),
        (torch.zeros(3), "batch", 3),
    ],
)
def test_another_length_is_refused_by_its_place(batch, place, size):
    message = (
        f"{place} has {size} rows, and the batch 4 examples. Everything in a batch needs one row per example: change "
        "the loader's `collate_fn`, or say with `spec=BatchSpec(...)` where the targets are."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        take(batch)


@pytest.mark.parametrize(
    ("batch", "place", "kind"),
    [
        ({"x": rows(), "bag": {1, 2}}, "batch['bag']", "set"),
        ([rows(), Decimal("0.1")], "batch[1]", "Decimal"),
        (Frozen(rows(), note=rows), "batch.note", "function"),
        (Frozen, "batch", "type"),
    ],
)
def test_an_entry_of_another_kind_is_refused_by_its_place(batch, place, kind):
    message = (
        f"{place} is a {kind}. A batch is made of tensors, arrays, lists, tuples, dicts and dataclasses, nested. "
        "Change the loader's `collate_fn`."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        take(batch)


def test_moving_to_where_it_is_copies_no_tensor_and_keeps_every_type():
    batch = Pair(
        {"x": rows(), "text": ["a", "b"]}, [Frozen(rows(), note={1, 2}), (torch.tensor(1.0), np.zeros(2), None)]
    )
    there = send_to_device(batch, CPU)
    assert type(there) is Pair
    assert type(there.second[0]) is Frozen
    assert there.first["x"] is batch.first["x"]
    assert there.first["text"] == ["a", "b"]
    assert there.second[0].x is batch.second[0].x
    assert there.second[0].note == {1, 2}
    assert all(here is before for here, before in zip(there.second[1], batch.second[1], strict=True))


def test_moving_reaches_every_tensor():
    """The meta device holds shapes alone, and is everywhere."""
    batch = {"x": rows(), "inner": [Frozen(rows()), (rows(2), "text")], "number": torch.tensor(3)}
    there = send_to_device(batch, torch.device("meta"))
    tensors = [there["x"], there["inner"][0].x, there["inner"][1][0], there["number"]]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert batch["x"].device == CPU
