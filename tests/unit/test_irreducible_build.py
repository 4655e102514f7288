import numpy as np
import pytest
import torch
from torch import nn

from reducr.data import ExampleDataset, ExampleLoader
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import (
    GroupIrreducibleLoss,
    LiveLogits,
    TableLoss,
    build_logit_table,
    build_loss_table,
    build_table,
)


def make_model(num_outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, num_outputs))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return ExampleDataset(
        torch.randn(23, 4, generator=generator),
        torch.randint(0, 3, (23,), generator=generator),
        num_classes=3,
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_row_i_holds_the_logits_of_example_i_in_any_order_of_reading(data, shuffle):
    model = make_model()
    table = build_logit_table(model, ExampleLoader(data, batch_size=5, shuffle=shuffle), num_examples=23)
    assert table.kind == "logits"
    assert table.values.dtype == np.float32
    np.testing.assert_allclose(table.values, model.eval()(data.input).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_indices_may_be_narrow_integers_and_values_may_have_gradients(data, dtype):
    model = make_model().eval()
    batches = [batch._replace(index=batch.index.to(dtype)) for batch in ExampleLoader(data, batch_size=5)]
    table = build_table(lambda batch: model(batch.input), batches, num_examples=23, kind="logits")
    np.testing.assert_allclose(table.values, model(data.input).detach().numpy(), atol=1e-6)


def test_a_joint_table_has_targets_then_groups(data):
    model = make_model(num_outputs=6)
    loader = ExampleLoader(data, batch_size=5)
    table = build_logit_table(model, loader, num_examples=23, num_joint_groups=2)
    assert table.kind == "joint_logits"
    assert table.values.shape == (23, 3, 2)
    np.testing.assert_allclose(table.values.reshape(23, 6), model.eval()(data.input).detach().numpy(), atol=1e-6)


def test_a_loss_table_equals_the_losses_of_the_live_models(data):
    models = [make_model(seed=seed) for seed in range(3)]
    table = build_loss_table(models, ExampleLoader(data, batch_size=5), num_examples=23)
    assert table.kind == "group_loss"
    batch = data.batch(torch.tensor([20, 3, 11]))
    torch.testing.assert_close(
        TableLoss(table).lookup(batch), GroupIrreducibleLoss(models).lookup(batch), rtol=0, atol=1e-6
    )
    expected = per_example_cross_entropy(LiveLogits(models[1]).logits(batch), batch.target)
    assert TableLoss(table).lookup(batch)[:, 1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_repeated_example_is_named(data):
    batches = [*ExampleLoader(data, batch_size=5), data.batch(torch.tensor([7]))]
    with pytest.raises(ValueError, match="1 did not, such as index 7, which came 2 times"):
        build_logit_table(make_model(), batches, num_examples=23)


def test_an_example_repeated_within_a_batch_is_named(data):
    batches = [*ExampleLoader(data, batch_size=5, drop_last=True), data.batch(torch.tensor([20, 21, 21, 22]))]
    with pytest.raises(ValueError, match="1 did not, such as index 21, which came 2 times"):
        build_logit_table(make_model(), batches, num_examples=23)


def test_missing_examples_are_named(data):
    loader = ExampleLoader(data, batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match="each of the 23 examples must come exactly once; 3 did not, such as index 20"):
        build_logit_table(make_model(), loader, num_examples=23)


def test_no_batch_at_all_is_an_error():
    with pytest.raises(ValueError, match="23 did not, such as index 0, which came 0 times"):
        build_logit_table(make_model(), [], num_examples=23)


def test_indices_of_other_data_are_refused(data):
    with pytest.raises(ValueError, match=r"indices must be in 0\.\.9; got 10\.\.14"):
        build_logit_table(make_model(), ExampleLoader(data, batch_size=5), num_examples=10)
