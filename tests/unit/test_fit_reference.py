"""``fit_reference``: epochs chosen on held-out folds, results reported, chance noticed, nothing else touched."""

import copy
import io
import math
import random
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

import reducr
from reducr.irreducible import held_out_report
from reducr.irreducible.cross_fit import stratified_folds
from reducr.irreducible.examples import HoldoutExamples, is_plain

SGD = partial(torch.optim.SGD, lr=0.3)
SIZE = 90
CPU = torch.device("cpu")


def make_data(size=SIZE, seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 4, generator=generator)
    targets = inputs[:, :3].argmax(dim=1)
    wrong = torch.rand(size, generator=generator) < noise
    return inputs, torch.where(wrong, torch.randint(0, 3, (size,), generator=generator), targets)


def make_model(num_outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(4, num_outputs)


def clean(batch_size=30, **options):
    return DataLoader(TensorDataset(*make_data()), batch_size=batch_size, **options)


def fit(model, loader, **options):
    return reducr.fit_reference(model, loader, **({"optimizer": SGD, "num_epochs": 8, "progress": False} | options))


def same_parameters(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def trained_epochs(fit, model, batches, **options):
    """How often a fit of ``model`` itself, not of its copies, sees each of the examples."""
    seen = []

    def count(module, arguments):
        if module is model and module.training:
            seen.append(len(arguments[0]))

    model.register_forward_pre_hook(count)
    fit(model, batches, **options)
    return sum(seen) / sum(len(targets) for _, targets in batches)


class Items(Dataset):
    """Samples of its own that are drawn anew each time they are read."""

    def __init__(self, *data):
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, position):
        inputs, target = (part[position] for part in self.data)
        drawn = float(np.random.rand()) + random.random()  # noqa: NPY002  (the global state is meant)
        return inputs + 0.01 * torch.randn(4) + 0.01 * drawn, target


# ---- what it does


def test_the_model_is_trained_in_place_and_returned():
    model = make_model()
    before = copy.deepcopy(model)
    inputs, targets = make_data(500, seed=1)
    assert fit(model, clean()) is model
    assert not model.training
    assert not same_parameters(model, before)
    assert (model(inputs).argmax(dim=1) == targets).float().mean() > 0.85
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_epochs_are_those_with_the_lowest_held_out_loss():
    inputs, targets = make_data(noise=0.3)
    batches = [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])]
    options = {"optimizer": partial(torch.optim.SGD, lr=0.5), "num_epochs": 30, "seed": 5}

    def make_wide():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

    report = held_out_report(make_wide(), batches, **options)
    assert report.num_epochs == 1 + int(np.argmin(report.loss_by_epoch))
    assert report.num_epochs < len(report.loss_by_epoch) < 30
    assert report.loss == min(report.loss_by_epoch)
    chosen = trained_epochs(fit, make_wide(), batches, **options)
    assert chosen == report.num_epochs
    assert trained_epochs(fit, make_wide(), batches, **(options | {"num_folds": 0, "num_epochs": 3})) == 3


def test_the_report_counts_every_example_once_when_it_was_not_trained_on():
    """A model that remembers what it has seen is at chance on the rest."""

    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("seen", torch.zeros(SIZE, dtype=torch.bool))

        def forward(self, index):
            if self.training:
                self.seen[index] = True
            certain = 20 * F.one_hot(index % 3, 3).float()
            return self.scale * torch.where(self.seen[index].unsqueeze(1), certain, 0.0)

    index = torch.arange(SIZE)
    data = TensorDataset(index, index % 3)
    report = held_out_report(Memory(), data, num_epochs=2, num_folds=5, progress=False)
    assert report.num_examples == SIZE
    assert report.loss == pytest.approx(math.log(3), abs=1e-3)
    assert report.is_near_chance
    model = Memory()
    with pytest.warns(RuntimeWarning, match="near chance"):
        fit(model, data, num_epochs=1)
    assert bool(model.seen.all())  # the model itself is trained on all


def test_the_report_has_the_accuracy_of_each_class():
    report = held_out_report(make_model(), clean(), optimizer=SGD, num_epochs=8)
    targets = make_data()[1]
    counts = torch.bincount(targets)
    assert report.chance_accuracy == pytest.approx(counts.max().item() / SIZE)
    assert report.accuracy == pytest.approx(float((torch.tensor(report.class_accuracy) * counts).sum() / SIZE))
    assert report.class_accuracy[report.worst_class] == min(report.class_accuracy)
    frequencies = counts / SIZE
    assert report.chance_loss == pytest.approx(-(frequencies * frequencies.log()).sum().item())
    assert report.loss < report.chance_loss
    assert report.faults == ()
    assert re.fullmatch(
        r"Reference model on 90 held-out examples \(3 folds\), after 8 epochs: loss 0\.\d{3} \(chance 1\.\d{3}\), "
        r"accuracy 0\.\d{3} \(most frequent class 0\.\d{3}\), worst class \d with 0\.\d{3}\. The loss was still "
        r"falling: allow more than num_epochs=8\.",
        str(report),
    )


def test_a_report_trains_nothing():
    model = make_model()
    held_out_report(model, clean(), num_epochs=2)
    assert same_parameters(model, make_model())


def test_a_class_without_examples_has_no_accuracy():
    inputs, targets = make_data()
    report = held_out_report(make_model(4), [(inputs, targets + targets.clamp(max=1))], num_epochs=2, optimizer=SGD)
    assert math.isnan(report.class_accuracy[1])
    assert report.worst_class != 1


def test_folds_have_their_share_of_every_label():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)[torch.randperm(60)]
    folds = stratified_folds(60, 3, labels=labels, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(folds).tolist() == [20, 20, 20]
    for label, counts in ((0, {16, 17}), (1, {2, 3}), (2, {1})):
        assert set(torch.bincount(folds[labels == label], minlength=3).tolist()) <= counts
    other = stratified_folds(60, 3, labels=None, generator=torch.Generator().manual_seed(1))
    assert torch.bincount(other).tolist() == [20, 20, 20]


# ---- chance


@pytest.mark.parametrize(("size", "learns"), [(60, True), (300, True), (60, False), (300, False)])
def test_chance_is_told_of_random_targets_only(size, learns):
    inputs, targets = make_data(size)
    if not learns:
        targets = targets[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_model(), TensorDataset(inputs, targets))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (0 if learns else 1)
    if not learns:
        assert re.match(
            r"The reference model is near chance: its held-out (loss|accuracy) of \d\.\d{3} is not (below|above)",
            messages[0],
        )
        assert "`num_epochs`, `optimizer`" in messages[0]


def test_a_good_model_of_rare_classes_is_not_near_chance_although_one_class_is_frequent():
    inputs, targets = make_data(3000)
    rare = torch.cat([torch.nonzero(targets == 0).flatten()[:190], torch.nonzero(targets == 1).flatten()[:10]])
    report = held_out_report(
        make_model(), TensorDataset(inputs[rare], targets[rare]), optimizer=partial(SGD, lr=0.5), num_epochs=20
    )
    assert report.chance_accuracy == pytest.approx(0.95)
    assert report.faults == ()


def test_a_model_that_does_not_train_is_near_chance():
    with pytest.warns(RuntimeWarning, match=r"held-out loss of 1\.\d+ is not below that of chance, 1\.0"):
        fit(make_model(), clean(), num_epochs=1, optimizer=partial(torch.optim.SGD, lr=1e-9))


def squared(output, target):
    return (output.squeeze(1) - target).square()


def test_another_loss_is_compared_with_that_of_other_examples_targets():
    inputs, _ = make_data()
    report = held_out_report(make_model(1), TensorDataset(inputs, inputs[:, 0]), loss=squared, optimizer=SGD)
    assert (report.accuracy, report.worst_class, report.faults) == (None, None, ())
    assert report.loss < 0.1
    assert report.chance_loss > 1
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    with pytest.warns(RuntimeWarning, match="its held-out loss of"):
        fit(make_model(1), TensorDataset(inputs, noise), loss=squared)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def token_loss(output, target):
    losses = F.cross_entropy(output.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return losses.sum(dim=1) / (target != -100).sum(dim=1)


def test_a_language_model_is_fitted_by_its_own_loss():
    ids = torch.randint(0, 7, (SIZE, 6), generator=torch.Generator().manual_seed(0))
    following = ((ids + 1) % 7).masked_fill(torch.arange(6) == 5, -100)
    model = fit(Tokens(), [(ids, following)], loss=token_loss, num_epochs=40)
    assert token_loss(model(ids), following).mean() < 0.2


def test_pairs_of_targets_and_groups_are_fitted_by_a_spec():
    inputs, targets = make_data()
    groups = (inputs[:, 3] > 0).long()
    spec = reducr.BatchSpec(input=0, target=lambda batch: batch[1] * 2 + batch[2])
    model = fit(make_model(6), TensorDataset(inputs, targets, groups), spec=spec, num_epochs=30)
    batch = reducr.Batch(None, inputs, targets, groups)
    joint = reducr.Reference(model, num_joint_groups=2)
    assert joint.bind(reducr.make_selector("reducr", num_groups=2)).lookup(batch).shape == (SIZE, 2)
    assert joint.lookup(batch).mean() < 0.5


def test_group_weights_weigh_the_examples_of_the_groups():
    """A weight of zero is as good as no example; weights are relative."""
    inputs, targets = make_data()
    shifted, groups = (targets + 1) % 3, torch.arange(SIZE) % 2
    mixed = torch.where(groups == 0, targets, shifted)
    data, spec = TensorDataset(inputs, mixed, groups), reducr.BatchSpec(input=0, target=1, group=2)
    options = {"spec": spec, "num_folds": 0, "num_epochs": 20}
    for weights, labels in (([1.0, 0.0], targets), ([0, 1], shifted)):
        model = fit(make_model(), data, group_weights=weights, **options)
        assert (model(inputs).argmax(dim=1) == labels).float().mean() > 0.9
    equal = fit(make_model(), data, group_weights=[2.0, 2.0], **options)
    plain = fit(make_model(), data, **options)
    assert torch.allclose(equal.weight, plain.weight, atol=1e-6)
    reference = reducr.Reference([fit(make_model(), data, group_weights=w, **options) for w in ([9, 1], [1, 9])])
    losses = reference.bind(reducr.make_selector("reducr", num_groups=2)).lookup(
        reducr.Batch(None, inputs, mixed, groups)
    )
    own, other = losses.gather(1, groups[:, None]), losses.gather(1, 1 - groups[:, None])
    assert own.mean() < other.mean()


# ---- reproducible, and nothing else touched


def states():
    keys = np.random.get_state()[1].copy()  # noqa: NPY002  (the global state is meant)
    return torch.get_rng_state(), keys, random.getstate()


@pytest.mark.parametrize("loader", ["data set", "shuffling loader", "workers", "batches"])
def test_a_seed_gives_the_same_model_and_global_randomness_is_left_alone(loader):
    data = Items(*make_data())

    def make_loader():
        return {
            "data set": data,
            "shuffling loader": DataLoader(data, batch_size=30, shuffle=True),
            "workers": DataLoader(data, batch_size=30, num_workers=2),
            "batches": [make_data()],
        }[loader]

    def make():
        return nn.Sequential(make_model(8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    torch.manual_seed(0)
    parts = [make() for _ in range(3)]
    for part in parts[1:]:
        part.load_state_dict(parts[0].state_dict())
    options = {"num_epochs": 2, "num_folds": 2}
    torch.manual_seed(1)
    first_state = states()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two epochs may be too few to be above chance
        fit(parts[0], make_loader(), seed=7, **options)
        assert torch.equal(states()[0], first_state[0])
        assert np.array_equal(states()[1], first_state[1])
        assert states()[2] == first_state[2]
        torch.manual_seed(2)
        random.seed(2)
        np.random.seed(2)  # noqa: NPY002  (the global state is meant)
        fit(parts[1], make_loader(), seed=7, **options)
        fit(parts[2], make_loader(), seed=8, **options)
    assert same_parameters(parts[0], parts[1])
    assert not same_parameters(parts[0], parts[2])


def test_batch_norm_never_gets_a_single_example():
    inputs, targets = make_data(33)  # 16, 16 and 1 in batches of 16
    sizes = []
    model = nn.Sequential(make_model(8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[1].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])) if module.training else None)
    fit(model, TensorDataset(inputs, targets), num_folds=0, num_epochs=2)
    assert sizes == [11, 11, 11] * 2


def test_an_epoch_has_about_twenty_steps():
    inputs, targets = make_data(1000)
    for loader, expected in (
        (DataLoader(TensorDataset(inputs, targets), batch_size=1000), [50] * 20),
        (DataLoader(TensorDataset(inputs, targets), batch_size=20), [20] * 50),
        ([(inputs, targets)], [50] * 20),
    ):
        examples = HoldoutExamples(loader, spec=None, device=CPU)
        batches = list(examples.shuffled(torch.arange(1000), torch.Generator().manual_seed(0)))
        assert [len(batch.target) for batch in batches] == expected
        assert torch.cat([batch.input for batch in batches]).sum(0).tolist() == pytest.approx(
            inputs.sum(0).tolist(), abs=1e-3
        )


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*make_data(), strict=True)


def loaders():
    data = TensorDataset(*make_data())
    weighted = WeightedRandomSampler([1.0] * SIZE, SIZE, replacement=False)
    yield "data set", data
    yield "list of batches", [make_data(50), make_data(40, seed=1)]
    yield "stream", DataLoader(Stream(), batch_size=40)
    yield "iterator", iter([make_data()])
    yield "sampler", DataLoader(data, batch_size=40, sampler=weighted)
    yield "dicts", [{"input": make_data()[0], "label": make_data()[1]}]
    yield "indexed", DataLoader(reducr.indexed(data), batch_size=40)
    yield "workers", DataLoader(data, batch_size=40, num_workers=2)


LOADERS = dict(loaders())


@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_of_the_holdout_set(kind):
    model = fit(make_model(), LOADERS[kind], num_epochs=10)
    inputs, targets = make_data(300, seed=4)
    assert (model(inputs).argmax(dim=1) == targets).float().mean() > 0.85


def test_examples_are_read_by_position_only_where_the_loader_gives_each_once():
    data = TensorDataset(*make_data())
    assert is_plain(data)
    assert is_plain(DataLoader(data, batch_size=10, drop_last=True))
    assert is_plain(DataLoader(data, batch_size=10, shuffle=True))
    for sampler in (
        RandomSampler(data, replacement=True),
        RandomSampler(data, num_samples=10),
        WeightedRandomSampler([1.0] * SIZE, SIZE),
    ):
        assert not is_plain(DataLoader(data, batch_size=10, sampler=sampler))
    assert not is_plain(DataLoader(data, batch_sampler=[[0, 1]]))
    assert not is_plain(DataLoader(data, batch_size=None))
    assert not is_plain(DataLoader(Stream()))
    assert not is_plain([make_data()])


def test_only_the_examples_of_a_sampler_are_trained_on():
    inputs, targets = make_data()
    wrong = targets.clone()
    wrong[45:] = (targets[45:] + 1) % 3
    sampler = torch.utils.data.SubsetRandomSampler(range(45))
    model = fit(make_model(), DataLoader(TensorDataset(inputs, wrong), batch_size=15, sampler=sampler), num_epochs=20)
    assert (model(inputs).argmax(dim=1) == targets).float().mean() > 0.85


# ---- what is written, and refused


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "has_progress", "has_results"),
    [
        (Terminal, None, True, True),
        (io.StringIO, None, False, True),
        (Terminal, False, False, False),
        (io.StringIO, True, True, True),
    ],
)
def test_progress_is_one_line_on_a_terminal_and_results_are_another(
    monkeypatch, stream, progress, has_progress, has_results
):
    written = stream()
    monkeypatch.setattr("sys.stderr", written)
    fit(make_model(), clean(), num_epochs=3, progress=progress)
    text = written.getvalue()
    assert ("\rreference model: fold 3 of 3, epoch 3: held-out loss 0." in text) == has_progress
    assert ("\rreference model: all examples, epoch 3 of 3" in text) == has_progress
    lines = text.split("\n")
    assert (len(lines) == 2 and "Reference model on 90 held-out examples" in lines[0]) == has_results
    assert text == "" if not has_results else lines[1].strip("\r") == "" or has_progress


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((len, clean()), {}, TypeError, "`model` must be a torch.nn.Module; got builtin_function_or_method."),
        ((make_model(), 3), {}, TypeError, "`loader` must give batches of the clean holdout set, such as a DataLoader"),
        (
            (make_model(), clean()),
            {"optimizer": torch.optim.SGD(make_model().parameters())},
            TypeError,
            "`optimizer` must be a function from parameters to an optimizer, as every fold needs its own",
        ),
        ((make_model(), clean()), {"optimizer": list}, TypeError, "must return a torch.optim.Optimizer; it returned a"),
        ((make_model(), clean()), {"num_epochs": 0}, ValueError, "num_epochs must be a whole number of at least 1"),
        ((make_model(), clean()), {"num_folds": 1}, ValueError, "num_folds must be 0, for no held-out folds, or at"),
        (
            (make_model(), clean()),
            {"num_folds": 50},
            ValueError,
            "50 folds need at least 100 examples; the holdout set",
        ),
        ((make_model(), clean()), {"progress": 3}, ValueError, "progress must be True or False; got 3."),
        ((make_model(), []), {}, ValueError, "The holdout set has no examples."),
        ((make_model().requires_grad_(False), clean()), {}, ValueError, "no parameter that requires gradients"),
        (
            (make_model(), clean()),
            {"group_weights": [1.0, -1.0]},
            ValueError,
            "one finite number of at least 0 for each",
        ),
        (
            (make_model(), clean()),
            {"group_weights": [1.0, 2.0]},
            ValueError,
            "group_weights holds weights of 2 groups, and the holdout set has groups 0..2.",
        ),
        (
            (make_model(1), TensorDataset(torch.zeros(9, 4), torch.zeros(9))),
            {"group_weights": [1.0], "loss": squared},
            ValueError,
            "group_weights need the group of every example, one integer each.",
        ),
        (
            (make_model(), TensorDataset(torch.full((9, 4), torch.nan), torch.zeros(9).long())),
            {},
            ValueError,
            "The loss of the reference model is NaN or infinite. Lower the learning rate",
        ),
        (
            (make_model(), TensorDataset(torch.zeros(9, 4), torch.zeros(9))),
            {},
            ValueError,
            "The cross-entropy needs targets (B,), one integer per example",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fit(*arguments, **options)


def test_options_of_a_report_are_those_of_a_fit():
    with pytest.raises(ValueError, match=r"unknown option 'num_epoch' of held_out_report. Did you mean 'num_epochs'"):
        held_out_report(make_model(), clean(), num_epoch=3)
    with pytest.raises(ValueError, match="A report needs held-out folds"):
        held_out_report(make_model(), clean(), num_folds=0)
