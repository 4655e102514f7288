"""``Reference.tabulate``: the same losses as live, for any data set and loader, read by index."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import reducr
from reducr.batch import Batch
from reducr.batch.carried import with_index

SIZE = 30


def make_model(num_outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, num_outputs))


INPUTS = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(SIZE) % 3
EVERYTHING = Batch(torch.arange(SIZE), INPUTS, TARGETS, TARGETS)


class Dicts(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, position):
        return {"input": INPUTS[position].numpy(), "label": int(TARGETS[position])}


class WithIndex(Dicts):
    """Yields an index of its own: 1000, 997, ..."""

    def __getitem__(self, position):
        return 1000 - 3 * position, INPUTS[position], int(TARGETS[position])


def hugging_face():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"input": INPUTS.numpy(), "label": TARGETS.numpy()})
    return data.with_format("torch")


DATA = {
    "tensors": lambda: TensorDataset(INPUTS, TARGETS),
    "dicts": Dicts,
    "Hugging Face": hugging_face,
    "list of samples": lambda: list(zip(INPUTS, TARGETS.tolist(), strict=True)),
    "indexed": lambda: reducr.indexed(TensorDataset(INPUTS, TARGETS)),
    "loader": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=7),
    "shuffling loader": lambda: DataLoader(Dicts(), batch_size=7, shuffle=True, drop_last=True),
    "loader with workers": lambda: DataLoader(Dicts(), batch_size=7, shuffle=True, num_workers=2),
    "loader with a batch sampler": lambda: DataLoader(Dicts(), batch_sampler=[[3, 1], [2, 0]]),
}


def rules():
    for name, num_groups in (("rho_loss", 3), ("reducr", 3)):
        yield reducr.make_selector(name, num_groups=num_groups)


@pytest.mark.parametrize("kind", DATA)
def test_a_table_has_the_live_losses_in_the_order_of_the_data_set(kind):
    live, before = reducr.Reference(make_model()), torch.get_rng_state()
    table = live.tabulate(DATA[kind](), batch_size=None if "loader" in kind else 7)
    assert torch.equal(torch.get_rng_state(), before)
    index = torch.tensor([29, 0, 7, 7])
    batch = Batch(index, None, TARGETS[index], TARGETS[index])
    for rule in rules():
        expected = live.bind(rule).lookup(EVERYTHING)[index]
        assert torch.allclose(table.bind(rule).lookup(batch), expected, atol=1e-6)
    assert live.lookup(EVERYTHING).shape == (SIZE,)  # still live


def test_each_example_is_read_once():
    class Counting(TensorDataset):
        reads = 0

        def __getitem__(self, position):
            type(self).reads += 1
            return super().__getitem__(position)

    model, calls = make_model(), []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    table = reducr.Reference(model).tabulate(Counting(INPUTS, TARGETS), batch_size=11)
    assert calls == [11, 11, 8]
    assert Counting.reads == SIZE + 2 * 8  # the first eight twice more, to see whether they change
    for rule in rules():
        table.bind(rule).lookup(EVERYTHING)
    assert sum(calls) == SIZE


def test_an_index_of_the_data_set_itself_is_the_key():
    live = reducr.Reference(make_model())
    table = live.tabulate(WithIndex(), batch_size=4)
    batch = Batch(torch.tensor([1000, 994, 913]), None, TARGETS[[0, 2, 29]], TARGETS[[0, 2, 29]])
    assert torch.allclose(table.lookup(batch), live.lookup(EVERYTHING)[[0, 2, 29]], atol=1e-6)
    with pytest.raises(
        ValueError,
        match=r"index 999 has no row in this table of 30 examples with indices from 913 to 1000. Tabulate the data set",
    ):
        table.lookup(batch._replace(index=torch.tensor([1000, 999, 913])))


def test_a_subset_of_an_indexed_data_set_keeps_its_indices():
    data = reducr.indexed(TensorDataset(INPUTS, TARGETS))
    table = reducr.Reference(make_model()).tabulate(Subset(data, [20, 3, 11]))
    index = torch.tensor([3, 20])
    losses = table.lookup(Batch(index, None, TARGETS[index], TARGETS[index]))
    assert torch.allclose(losses, reducr.Reference(make_model()).lookup(EVERYTHING)[index], atol=1e-6)


def test_an_index_outside_of_the_data_set_is_named():
    table = reducr.Reference(make_model()).tabulate(TensorDataset(INPUTS, TARGETS))
    with pytest.raises(
        ValueError, match=r"index 30 has no row in an irreducible table of 30 examples. Use the data set"
    ):
        table.lookup(EVERYTHING._replace(index=torch.arange(SIZE) + 1))


def test_the_targets_of_another_data_set_or_order_are_noticed():
    table = reducr.Reference(make_model()).tabulate(TensorDataset(INPUTS, TARGETS))
    other = EVERYTHING._replace(target=TARGETS.roll(1), group=TARGETS.roll(1))
    with pytest.warns(RuntimeWarning, match="30 of 30 targets of this batch differ from those that the examples with"):
        table.lookup(other)
    table.lookup(other)  # told once


@pytest.mark.parametrize("targets", [F.one_hot(TARGETS, 3).float(), TARGETS])
def test_another_loss_is_computed_from_the_logits_when_it_is_known(targets):
    def loss(output, target):
        return F.cross_entropy(output, target, reduction="none", label_smoothing=0.2)

    live = reducr.Reference(make_model())
    table = live.tabulate(TensorDataset(INPUTS, targets))
    batch = EVERYTHING._replace(target=targets, group=TARGETS.clone())
    for rule in rules():
        expected = live.bind(rule, loss=loss).lookup(batch)
        assert torch.allclose(table.bind(rule, loss=loss).lookup(batch), expected, atol=1e-6)


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make_model(5)

    def forward(self, inputs):
        return self.model(inputs).unsqueeze(1).expand(-1, 2, -1)


def token_loss(output, target):
    return F.cross_entropy(output.transpose(1, 2), target, reduction="none").mean(dim=1)


def test_losses_are_tabulated_where_the_output_is_not_logits():
    tokens = torch.stack([TARGETS, TARGETS + 1], dim=1)
    data = TensorDataset(INPUTS, tokens)
    live = reducr.Reference(Sequences(), loss=token_loss)
    batch = Batch(torch.arange(SIZE), INPUTS, tokens, TARGETS)
    assert torch.allclose(live.tabulate(data).lookup(batch), live.lookup(batch), atol=1e-6)
    with pytest.raises(
        ValueError,
        match=r"this model returns \(30, 2, 5\) for targets torch.int64 \(30, 2\). Give the loss of the loop",
    ):
        reducr.Reference(Sequences()).tabulate(data)
    rule = reducr.make_selector("reducr", num_groups=3)
    with pytest.raises(ValueError, match="got a table of losses and targets"):
        live.tabulate(data).bind(rule).lookup(batch)


def test_a_list_of_models_has_a_table_of_losses_by_group():
    live = reducr.Reference([make_model(seed=seed) for seed in range(3)])
    table = live.tabulate(TensorDataset(INPUTS, TARGETS))
    group = (torch.arange(SIZE) // 2) % 3
    batch = EVERYTHING._replace(group=group)
    for rule in rules():
        assert torch.allclose(table.bind(rule).lookup(batch), live.bind(rule).lookup(batch), atol=1e-6)


def test_a_joint_model_has_a_table_of_all_its_logits():
    live = reducr.Reference(make_model(6), num_joint_groups=2)
    rule, batch = reducr.make_selector("reducr", num_groups=2), EVERYTHING._replace(group=TARGETS % 2)
    table = live.tabulate(TensorDataset(INPUTS, TARGETS))
    assert torch.allclose(table.bind(rule).lookup(batch), live.bind(rule).lookup(batch), atol=1e-6)


def test_random_augmentation_is_told():
    class Augmented(TensorDataset):
        def __getitem__(self, position):
            inputs, target = super().__getitem__(position)
            return inputs + torch.randn(4), target

    before = torch.get_rng_state()
    with pytest.warns(RuntimeWarning, match="The first examples differ when they are read twice, as with random augm"):
        reducr.Reference(make_model()).tabulate(Augmented(INPUTS, TARGETS))
    assert torch.equal(torch.get_rng_state(), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing = INPUTS.clone()
        missing[0, 0] = torch.nan  # the same twice
        reducr.Reference(make_model()).tabulate(TensorDataset(missing, TARGETS))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(INPUTS, TARGETS, strict=True)


def drop_every_second(samples):
    inputs, targets = zip(*samples[::2], strict=True)
    return torch.stack(inputs), torch.tensor(targets)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            Stream(),
            TypeError,
            "A table needs a data set with a length and positions, or a DataLoader of one; got Stream.",
        ),
        (DataLoader(Stream()), TypeError, "got Stream. For a stream, use the reference model itself"),
        (
            DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=None),
            TypeError,
            "This DataLoader does not batch (batch_size=None)",
        ),
        ([], ValueError, "The data set has no examples, so there is nothing to tabulate."),
        (
            DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=6, collate_fn=drop_every_second),
            ValueError,
            "The data set has 30 examples, and its batches 15. Every example needs a row",
        ),
        (
            [with_index((INPUTS[0], 1), number) for number in (0, 1, 2, 1)],
            ValueError,
            "index 1 belongs to several examples of this data set. Number them anew: reducr.indexed(dataset).",
        ),
    ],
)
def test_what_cannot_be_tabulated_is_refused(data, error, message):
    with pytest.raises(error, match=re.escape(message)):
        reducr.Reference(make_model()).tabulate(data)


def test_a_table_is_not_tabulated_again():
    table = reducr.Reference(make_model()).tabulate(TensorDataset(INPUTS, TARGETS))
    with pytest.raises(ValueError, match="reads a table already"):
        table.tabulate(TensorDataset(INPUTS, TARGETS))


def test_parts_are_found_by_a_spec():
    data = [{"x": row, "y": np.int64(target)} for row, target in zip(INPUTS, TARGETS.tolist(), strict=True)]
    table = reducr.Reference(make_model()).tabulate(data, spec=reducr.BatchSpec(input="x", target="y"))
    assert table.lookup(EVERYTHING).shape == (SIZE,)
