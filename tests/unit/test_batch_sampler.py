"""Options, errors and draws of ``SelectiveBatchSampler``; what it selects is in ``tests/equivalence``."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import reducr
from reducr.batch import Batch
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, LiveLogits, PlainIrreducibleLoss, TableLoss
from reducr.training.holdout_share import TrainingAndHoldout
from reference.baselines import quota_counts

NUM_EXAMPLES = 600
TARGETS = torch.arange(NUM_EXAMPLES) % 10 // 8  # one in five is of class 1
DATASET = TensorDataset(torch.zeros(NUM_EXAMPLES, 4), TARGETS)
CLEAN = [(torch.zeros(2, 4), torch.tensor([0, 1]))]


def model():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def table(losses=None, size=NUM_EXAMPLES):
    losses = torch.ones(size) if losses is None else losses
    return TableLoss(IrreducibleTable(losses.numpy(), kind="loss"))


def sampler(selector="class_balanced", irreducible=None, *, dataset=DATASET, **options):
    return reducr.SelectiveBatchSampler(dataset, model(), selector, irreducible, **{"batch_size": 6} | options)


def flat(batches):
    return list(chain.from_iterable(batches))


def counts_of(batches, num_groups=2, groups=TARGETS):
    return torch.stack([torch.bincount(groups[torch.tensor(batch)], minlength=num_groups) for batch in batches])


@pytest.mark.parametrize("rule", ["uniform", "rs2", "irreducible_loss", "class_balanced", "drop", "priority_sampling"])
def test_a_rule_by_name_gets_the_groups_of_the_data_set(rule):
    chosen = sampler(rule, table(), holdout=CLEAN, refresh_steps=5)
    assert chosen.selector.name == rule
    assert chosen.selector.num_groups == 2
    batches = list(chosen)
    assert [len(batch) for batch in batches] == [6] * 10
    assert len(chosen) == 10
    indices = flat(batches)
    assert len(set(indices)) == len(indices)  # candidates of a pass do not overlap
    assert chosen.report().num_candidates == NUM_EXAMPLES


def test_a_rule_by_name_gets_its_options():
    chosen = sampler("priority_sampling", table(), holdout=CLEAN, step_size=0.25, uniform_share=0.125, num_groups=4)
    assert (chosen.selector.uniform_share, chosen.selector.weighting.step_size) == (0.125, 0.25)
    assert chosen.selector.num_groups == 4


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"batch_size": 8, "fraction": 0.3}, [8] * 22),  # a tenth of a batch is left over, which would give one example
        ({"batch_size": 8, "fraction": 0.3, "drop_last": True}, [8] * 22),
        ({"batch_size": 7, "fraction": 0.1}, [7] * 8 + [4]),
        ({"batch_size": 50, "fraction": 0.09}, [50, 3]),
        ({"batch_size": 64, "fraction": 0.1}, [60]),
        ({"batch_size": 10, "fraction": 0.99}, [10] * 54 + [5]),
        ({"batch_size": 9, "fraction": 1.0}, [9] * 66 + [6]),
        ({"batch_size": 590, "fraction": 1.0}, [590, 10]),
        ({"batch_size": 599, "fraction": 1.0}, [599]),  # one left over is no batch
        ({"batch_size": 1, "fraction": 0.4}, [1] * 200),
        ({"batch_size": 7, "fraction": None}, [7] * 85),
    ],
)
def test_sizes_of_batches(options, sizes):
    chosen = sampler(**options)
    assert [len(batch) for batch in chosen] == sizes
    assert len(chosen) == len(sizes)


def test_every_pass_has_another_order_and_every_seed_other_draws():
    def first_two_passes(seed):
        chosen = sampler("uniform", seed=seed)
        return [list(chosen), list(chosen)]

    assert first_two_passes(0) == first_two_passes(0)
    one, two = first_two_passes(0)
    assert one != two
    assert first_two_passes(1)[0] != one


def test_set_epoch():
    chosen, other = sampler("uniform"), sampler("uniform")
    passes = [sorted(flat(chosen)) for _ in range(3)]
    assert (chosen.epoch, chosen.position) == (3, 10)
    other.set_epoch(2)
    assert other.epoch == 2
    candidates = [set(other._order.tolist()) for _ in [list(other)]]
    assert candidates[0] == set(chosen._order.tolist())
    assert torch.equal(other._order, chosen._order)
    assert len(passes[2]) == 60
    batches = iter(other)
    next(batches)
    other.set_epoch(3)  # the current one
    assert (other.epoch, other.position) == (3, 1)
    list(other)
    assert other.epoch == 5  # a pass that was left is over, as for SelectiveLoader


def test_class_balanced_draws_from_the_whole_data_set():
    """Both classes equally often, and the examples of a class too."""
    chosen = sampler(fraction=None, batch_size=10)
    batches = [batch for _ in range(10) for batch in chosen]
    counts = counts_of(batches).double()
    num_draws = 10 * len(batches)
    assert abs(float(counts[:, 0].sum()) - num_draws / 2) < 4.5 * (num_draws / 4) ** 0.5
    times = torch.bincount(torch.tensor(flat(batches)), minlength=NUM_EXAMPLES).double()
    for group in (0, 1):
        own = times[group == TARGETS]
        assert float((own - own.mean()).abs().max()) < 6 * float(own.mean()) ** 0.5


def test_priority_sampling_draws_its_quotas_from_the_whole_data_set_by_belief():
    """Against the formulas: numbers of each group, and how often examples with two beliefs are drawn."""
    losses = torch.where(torch.arange(NUM_EXAMPLES) % 2 == 0, 0.0, 3.0)
    selector = reducr.make_selector(
        "priority_sampling", num_groups=2, uniform_share=0.4, step_size=1.0, irreducible_temperature=1.5
    )
    selector.weighting.update(torch.tensor([-1.0, 0.0], dtype=torch.float64))
    weights = selector.group_weights.tolist()
    selector.set_group_holdout_loss(torch.zeros(2))  # weights stay
    chosen = sampler(selector, table(losses), fraction=None, batch_size=5)
    batches = [batch for _ in range(8) for batch in chosen]
    sizes = torch.bincount(TARGETS).tolist()
    expected = quota_counts(sizes, [0.6 * weight + 0.2 for weight in weights], 5)
    counts = counts_of(batches)
    for group in (0, 1):
        assert set(counts[:, group].tolist()) == {int(expected[group]), int(expected[group]) + 1}
        part, number = expected[group] % 1, len(batches)
        error = 4.5 * (number * part * (1 - part)) ** 0.5
        assert abs(int(counts[:, group].sum()) - number * expected[group]) < error
    believed = sum(index % 2 == 0 for batch in batches for index in batch)
    share = 1 / (1 + torch.exp(torch.tensor(-2.0)).item())  # half of each group are believed exp(2) times as much
    total = 5 * len(batches)
    assert abs(believed - total * share) < 4.5 * (total * share * (1 - share)) ** 0.5 + 0.01 * total


def test_rs2_takes_every_example_of_the_data_set_once_before_any_again():
    chosen = sampler("rs2", fraction=None, batch_size=6)
    assert sorted(flat(chosen)) == list(range(NUM_EXAMPLES))
    assert sorted(flat(chosen)) == list(range(NUM_EXAMPLES))


def test_the_holdout_set_is_evaluated_at_refreshes_only_and_leaves_random_states():
    calls = []

    class Model(nn.Linear):
        def forward(self, inputs):
            calls.append((self.training, len(inputs)))
            return super().forward(inputs)

    clean = DataLoader(TensorDataset(torch.zeros(8, 4), torch.arange(8) % 2), batch_size=8, shuffle=True)
    chosen = reducr.SelectiveBatchSampler(DATASET, Model(4, 2), "drop", batch_size=6, holdout=clean, refresh_steps=4)
    before = torch.get_rng_state()
    numbers = [len(calls) for _ in chosen]
    assert torch.equal(torch.get_rng_state(), before)
    assert numbers == [1] * 4 + [2] * 4 + [3] * 2  # before the first batch, the fifth and the ninth
    assert calls == [(False, 8)] * 3
    assert chosen.model.training


def test_a_pass_ends_once(monkeypatch):
    """When the reader asks for more, or where it does not, when the next pass begins."""
    chosen = sampler("uniform")
    step, ends = chosen.downsampler.step, []

    def counted(model, *, is_last=False):
        ends.append(is_last)
        step(model, is_last=is_last)

    monkeypatch.setattr(chosen.downsampler, "step", counted)
    assert len(list(chosen)) == 10
    assert ends == [False] * 9 + [True]
    batches = iter(chosen)
    assert len([next(batches) for _ in range(10)]) == 10
    assert ends.count(True) == 1
    list(chosen)
    assert ends.count(True) == 3
    assert chosen.report().num_steps == 30


def test_groups_may_be_others_than_the_targets():
    groups = torch.arange(NUM_EXAMPLES) % 3
    chosen = sampler(groups=groups, batch_size=30)
    assert chosen.selector.num_groups == 3
    assert counts_of(chosen, 3, groups).sum(dim=0).min() > 15


def test_a_subset_has_indices_of_its_own():
    part = Subset(DATASET, range(300, 500))
    chosen = sampler("irreducible_loss", table(torch.arange(200.0).flip(0), 200), dataset=part, batch_size=2)
    batches = list(chosen)
    assert max(flat(batches)) < 200
    assert len(batches) == 10
    order = chosen._order.tolist()
    assert batches[0] == sorted(order[:20])[-1:-3:-1]


class Margin(reducr.Selector):
    """Of another package: reads the targets only."""

    name = "margin"
    needs = frozenset({"targets"})

    def score(self, candidates, *, generator):
        return candidates.targets.double()


def test_a_rule_of_another_package():
    batches = list(sampler(Margin(num_groups=2)))
    assert bool((counts_of(batches)[:, 1] == 6).all())


def unlabelled():
    return [torch.zeros(4) for _ in range(NUM_EXAMPLES)]


def test_rules_that_read_no_targets_do_without():
    assert len(flat(sampler("uniform", dataset=unlabelled()))) == 60
    assert sampler("rs2", dataset=unlabelled()).selector.num_groups == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"selector": "reducr", "irreducible": AdjustedIrreducibleLoss(LiveLogits(model()))}, ValueError,
         "'reducr' scores candidates by the model, so they must be loaded first. Use SelectiveLoader, or a rule that"),
        ({"selector": "bald"}, ValueError, "'bald' scores candidates by the model"),
        ({"selector": "group_dro"}, ValueError, "'group_dro' scores candidates by the model"),
        ({"selector": "priority_sampling"}, ValueError, "'priority_sampling' needs irreducible losses; got irr"),
        ({"selector": "priority_sampling", "irreducible": PlainIrreducibleLoss(LiveLogits(model()))}, ValueError,
         r"PlainIrreducibleLoss gives no irreducible losses for .*Pass a table, such as reducr.Reference"),
        ({"selector": "irreducible_loss", "irreducible": table(size=500)}, ValueError,
         r"index 50\d has no row in an irreducible table of 500 examples"),
        ({"selector": "irreducible_loss", "irreducible": table(), "fraction": None}, ValueError,
         "With fraction=None, 'irreducible_loss' would select the same 6 examples of the data set in every step"),
        ({"dataset": unlabelled()}, ValueError,
         "'class_balanced' chooses examples by their groups before they are loaded, and .* Pass `groups="),
        ({"selector": "irreducible_loss", "irreducible": table(), "dataset": unlabelled()}, ValueError,
         "by their targets before they are loaded, .* targets, target, labels or label. Pass `targets=`"),
        ({"dataset": iter([])}, TypeError, "`dataset` must be a map-style data set, .*; got list_iterator"),
        ({"selector": reducr.make_selector("class_balanced", num_groups=1)}, ValueError,
         r"groups must be in 0\.\.0; index 8 holds 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": 601, "fraction": 1.0, "drop_last": True}, ValueError,
         "A batch of 601 on 1 ranks needs 601 candidates, and the data set has 600 examples"),
        ({"fraction": 10}, ValueError, r"`fraction` must be in \(0, 1\], .* For 10 percent, pass 0\.1"),
        ({"targets": [1, 2]}, ValueError, r"`targets` must have one row for each of the 600 examples; got \(2,\)"),
        ({"distributed": "local"}, ValueError, "distributed='local' does not apply to a batch sampler"),
        ({"distributed": "globl"}, ValueError, "unknown distributed mode 'globl'. Did you mean 'global'"),
        ({"accumulate_steps": 0}, ValueError, "accumulate_steps must be a whole number of at least 1; got 0"),
        ({"scoring": reducr.Scoring()}, ValueError,
         "SelectiveBatchSampler has no option 'scoring': no rule here scores with the model"),
        ({"holdout_fraction": 0.25}, ValueError, "holdout_fraction=0.25 has no effect without `holdout`"),
        ({"holdout_fraction": 1.0, "holdout": CLEAN}, ValueError, r"holdout_fraction must be in \[0, 1\)"),
        ({"holdout_fraction": 0.5, "holdout": reducr.Holdout(CLEAN, fraction=0.25)}, ValueError,
         "holdout_fraction=0.5 has no effect beside a Holdout with its own fraction"),
        ({"holdout": reducr.Holdout(CLEAN, fraction=0.25)}, ValueError,
         "`holdout` must be a DataLoader over a map-style data set; got list. Pass DataLoader"),
        ({"step_sise": 0.1, "selector": "priority_sampling", "irreducible": table()}, ValueError,
         "unknown option 'step_sise' of selector 'priority_sampling' .* Did you mean 'step_size'"),
        ({"step_size": 0.1, "selector": reducr.make_selector("uniform", num_groups=2)}, ValueError,
         "unknown option 'step_size' of SelectiveBatchSampler with a rule that is already made"),
        ({"refresh_steps": 3}, ValueError, "refresh_steps=3 has no effect without `holdout`"),
    ],
)  # fmt: skip
def test_what_is_refused_at_set_up(change, error, message):
    with pytest.raises(error, match=message):
        sampler(**change)


def test_a_rule_that_needs_the_holdout_loss_says_so_before_the_first_batch():
    with pytest.raises(ValueError, match=r"'drop' needs the holdout loss before its first selection. Pass `hold"):
        list(sampler("drop"))


def test_one_pass_at_a_time():
    chosen = sampler("uniform")
    first, second = iter(chosen), iter(chosen)
    next(second)
    with pytest.raises(RuntimeError, match="Only one active iterator is supported"):
        next(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "batch_size is 6 in the state and 5 here"),
        ({"fraction": 0.2}, "num_candidates is 60 in the state and 30 here"),
        ({"selector": "uniform"}, "rule is class_balanced in the state and uniform here"),
        ({"seed": 1}, "seed is 0 in the state and 1 here"),
        ({"dataset": Subset(DATASET, range(599))}, "num_examples is 600 in the state and 599 here"),
    ],
)
def test_a_state_of_other_batches_is_refused(change, message):
    with pytest.raises(ValueError, match=f"The state is of a sampler with other batches: .*{message}"):
        sampler(**change).load_state_dict(sampler().state_dict())


def test_the_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match="the state of a SelectiveBatchSampler must hold ahead, downsampler, epoch"):
        sampler().load_state_dict({"epoch": 0})


def test_a_table_of_logits_needs_the_targets_of_the_data_set():
    class FromTargets:
        def lookup(self, batch: Batch):
            assert batch.input is None
            return batch.target.double()

    batches = list(sampler("irreducible_loss", FromTargets()))
    assert counts_of(batches)[:, 1].sum() == 0


def clean_loader(targets=None, inputs=None, **options):
    targets = torch.arange(40) % 2 if targets is None else targets
    inputs = torch.zeros(len(targets), 4) if inputs is None else inputs
    return DataLoader(TensorDataset(inputs, targets), **{"batch_size": 10} | options)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"batch_size": 32}, [(24, 8), (21, 7)]),
        ({"batch_size": 6, "holdout_fraction": 0.5}, [(3, 3)] * 10),
        ({"batch_size": 60, "fraction": None}, [(45, 15)] * 10),  # wraps around the 40 holdout examples
        ({"batch_size": 7, "drop_last": True}, [(5, 2)] * 8),
        ({"batch_size": 7}, [(5, 2)] * 8 + [(3, 1)]),
    ],
)
def test_shares_of_a_batch(options, sizes):
    """``batch_size`` counts both; the holdout examples come last, each once before any comes again."""
    chosen = sampler(holdout=clean_loader(), **{"holdout_fraction": 0.25} | options)
    batches = list(chosen)
    assert len(chosen.dataset) == NUM_EXAMPLES + 40
    assert [(sum(i < NUM_EXAMPLES for i in batch), sum(i >= NUM_EXAMPLES for i in batch)) for batch in batches] == sizes
    for batch, (num_selected, _) in zip(batches, sizes, strict=True):
        assert max(batch[:num_selected]) < NUM_EXAMPLES <= min(batch[num_selected:])
    drawn = [index - NUM_EXAMPLES for index in flat(batches) if index >= NUM_EXAMPLES]
    passes = [drawn[start : start + 40] for start in range(0, len(drawn), 40)]
    assert all(len(set(part)) == len(part) for part in passes)
    assert all(sorted(part) == list(range(40)) for part in passes if len(part) == 40)
    assert passes[0] != sorted(passes[0])
    report = chosen.report()
    assert report.num_selected == sum(num_selected for num_selected, _ in sizes)


def test_without_a_share_the_data_set_is_the_one_given():
    assert sampler().dataset is DATASET
    assert sampler(holdout=clean_loader()).dataset is DATASET
    assert sampler(holdout=clean_loader(), holdout_fraction=0).dataset is DATASET


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_over_another_data_set_is_refused_before_the_first_batch(num_workers):
    chosen = sampler(holdout=clean_loader(), holdout_fraction=0.25)
    text = (
        "The indices of this batch sampler stand for 600 training examples, followed by 40 of the holdout set, and the "
        r"DataLoader that reads it has a data set of 600. Use DataLoader\(sampler.dataset, batch_sampler=sampler\)."
    )
    with pytest.raises(ValueError, match=text):
        next(iter(DataLoader(DATASET, batch_sampler=chosen, num_workers=num_workers)))
    assert (chosen.epoch, chosen.position) == (0, 0)
    assert len([inputs for inputs, _ in DataLoader(chosen.dataset, batch_sampler=chosen)]) == 10
    with pytest.raises(ValueError, match=r"stand for 600 training examples, and the DataLoader .* data set of 599"):
        next(iter(DataLoader(Subset(DATASET, range(599)), batch_sampler=sampler())))


class Stream(IterableDataset):
    """Without positions."""

    def __iter__(self):
        return iter([(torch.zeros(4), 1), (torch.zeros(4), 0)])


class Samples(list):
    """A data set of Python objects, with targets."""

    targets = TARGETS


class Rows:
    """A data set that reads several examples at once."""

    def __init__(self, values):
        self.values, self.calls = values, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, number):
        raise AssertionError("one at a time")

    def __getitems__(self, numbers):
        self.calls.append(numbers)
        return [self.values[number] for number in numbers]


def test_both_data_sets_read_several_examples_at_once_where_they_can():
    rows = Rows(["a", "b", "c"])
    joined = TrainingAndHoldout([rows, ["x", "y"], Rows(["z"])])
    assert joined.__getitems__([4, 2, 0, 3, 5, 1]) == ["y", "c", "a", "x", "z", "b"]
    assert rows.calls == [[2, 0, 1]]
    assert joined[3] == "x"
    assert TrainingAndHoldout([rows, ["x"]]).__getitems__([3]) == ["x"]
    assert rows.calls == [[2, 0, 1]]


def draws_of(**options):
    return sampler(**{"holdout": clean_loader(), "holdout_fraction": 0.25} | options)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (lambda: clean_loader(sampler=WeightedRandomSampler(torch.ones(40), 40)),
         "the WeightedRandomSampler of this loader may leave some out. Pass a loader without a sampler of its own"),
        (lambda: clean_loader(batch_size=1, batch_sampler=[[0, 1]]), "the list of this loader may leave some out"),
        (lambda: DataLoader(Stream()), "over a map-style data set; got a DataLoader over a stream. Pass DataLoader"),
        (lambda: clean_loader(inputs=torch.zeros(40, 1, 4)),
         r"the example\[0\] is an array of float32 with 1 axis in the training data and an array of float32 with 2"),
        (lambda: clean_loader(inputs=torch.zeros(40, 4).double()), r"data and an array of float64 with 1 axis"),
        (lambda: clean_loader(torch.zeros(40)), r"the example\[1\] is an integer in the training data and a float in"),
        (lambda: clean_loader(inputs=torch.zeros(40, 5)), "the same structure: `collate_fn` of the holdout loader"),
        (lambda: DataLoader([(torch.zeros(4), 1, 2)] * 40), "the example has 2 parts in the training data and 3 in th"),
        (lambda: DataLoader([{"x": torch.zeros(4), "y": 1}] * 40), "is a tuple in the training data and a dict in the"),
        (lambda: DataLoader(reducr.indexed(clean_loader().dataset)),
         "one of them comes from reducr.indexed.* and the other does not. Let the holdout data set yield what the"),
    ],
)  # fmt: skip
def test_holdout_sets_that_cannot_be_mixed_in(holdout, message):
    loader = holdout()
    with pytest.raises(ValueError, match=message):
        draws_of(holdout=loader)


def test_shares_that_draw_nothing_or_leave_nothing_are_refused_at_set_up():
    with pytest.raises(ValueError, match=r"holdout_fraction=0\.01 draws 0 of the 6 examples per step from the holdout"):
        draws_of(holdout_fraction=0.01)
    with pytest.raises(ValueError, match=r"holdout_fraction=0\.95 draws 6 of the 6 .* so none would be selected"):
        draws_of(holdout_fraction=0.95)


@pytest.mark.parametrize(
    ("example", "other"),
    [
        ({"ids": [1, 2, 3], "label": 0}, {"ids": [4], "label": torch.tensor(1)}),  # of any length, padded later
        ((object(), np.int64(1)), (type("Image", (), {})(), 1)),
        ([torch.zeros(2), None], (np.zeros(2, dtype=np.float32), None)),
    ],
)
def test_examples_of_the_same_structure(example, other):
    loader = DataLoader([other] * 40, collate_fn=list)
    state = torch.get_rng_state()
    chosen = draws_of(holdout=loader, dataset=Samples([example] * NUM_EXAMPLES), selector="uniform")
    assert torch.equal(torch.get_rng_state(), state)
    assert chosen.dataset[NUM_EXAMPLES] is other


def test_keys_of_examples_are_compared():
    loader = DataLoader([{"ids": [4], "label": 1, "site": 2}] * 40, collate_fn=list)
    with pytest.raises(ValueError, match="the example has the keys ids, label in the training data and ids, label, si"):
        draws_of(holdout=loader, dataset=Samples([{"ids": [1], "label": 0}] * NUM_EXAMPLES))


def test_a_state_of_other_shares_is_refused_and_one_without_is_read():
    state = draws_of().state_dict()
    with pytest.raises(ValueError, match=r"holdout_fraction is 0\.25 in the state and None here, num_holdout"):
        sampler().load_state_dict(state)
    with pytest.raises(ValueError, match=r"holdout_fraction is 0\.25 in the state and 0\.5 here\. Use the same data"):
        draws_of(holdout_fraction=0.5).load_state_dict(state)
    earlier = {name: value for name, value in sampler().state_dict().items() if name != "num_drawn"}
    sampler().load_state_dict(earlier)
