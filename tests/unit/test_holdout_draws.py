"""``holdout_fraction``: holdout examples in every step, in every loop."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.downsampler import Downsampler
from reducr.scoring import HoldoutDraws, num_examples_of

NUM = 30


def batches_of(kind):
    inputs, targets = torch.arange(NUM).float()[:, None], torch.arange(NUM) % 3
    data = TensorDataset(inputs, targets)

    class Stream:
        def __iter__(self):
            return zip(inputs.split(7), targets.split(7), strict=True)

    return {
        "in order": lambda: DataLoader(data, batch_size=8),
        "shuffled": lambda: DataLoader(data, batch_size=8, shuffle=True),
        "list": lambda: list(Stream()),
        "stream": Stream,
    }[kind]()


KINDS = ["in order", "shuffled", "list", "stream"]


def numbers(draws, count):
    inputs, targets = draws.draw(count)
    assert torch.equal(inputs[:, 0].long() % 3, targets)  # inputs and targets belong together
    return inputs[:, 0].long().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_is_drawn_once_before_any_is_drawn_again(kind):
    draws = HoldoutDraws(batches_of(kind), None, seed=3)
    before = torch.get_rng_state()
    drawn = [numbers(draws, 4) for _ in range(15)]
    assert torch.equal(torch.get_rng_state(), before)
    flat = [number for step in drawn for number in step]
    assert sorted(flat[:NUM]) == sorted(flat[NUM:]) == list(range(NUM))
    assert flat[:NUM] != list(range(NUM))
    assert flat[:NUM] != flat[NUM:]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_continue_where_they_were(kind):
    draws = HoldoutDraws(batches_of(kind), None, seed=3)
    numbers(draws, 11)
    numbers(draws, 25)
    again = HoldoutDraws(batches_of(kind), None, seed=3)
    again.seek(draws.num_drawn)
    copied = copy.deepcopy(draws)
    following = [numbers(draws, 9) for _ in range(4)]
    assert [numbers(again, 9) for _ in range(4)] == following
    assert [numbers(copied, 9) for _ in range(4)] == following
    if kind != "stream":
        other = HoldoutDraws(batches_of(kind), None, seed=4)
        other.seek(36)
        assert [numbers(other, 9) for _ in range(4)] != following


def test_a_pickled_loader_draws_what_it_would_have_drawn():
    draws = pickle.loads(pickle.dumps(HoldoutDraws(batches_of("list"), None, seed=3)))
    assert numbers(draws, 9) == numbers(HoldoutDraws(batches_of("list"), None, seed=3), 9)


@pytest.mark.parametrize(("share", "expected"), [(0.0, (32, 0)), (0.25, (24, 8)), (0.5, (16, 16)), (0.99, (1, 31))])
def test_shares_of_a_step(share, expected):
    assert num_examples_of(0.1, share, 320) == expected


def train(num_batches=6, *, state=None, first=0, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    batches = [(100 + torch.arange(20.0)[:, None] + 20 * n, torch.arange(20) % 3) for n in range(num_batches)]
    loader = reducr.SelectiveLoader(batches, model, "train_loss", fraction=0.4, holdout=batches_of("list"), **options)
    if state is not None:
        loader.load_state_dict(state)
    seen, states = [], []
    for inputs, targets in loader:
        assert len(targets) == len(loader.example_weights)
        seen.append(inputs[:, 0].tolist())
        states.append(loader.state_dict())
    return seen, states, loader


def test_each_step_has_its_share_of_holdout_examples_after_the_selected_ones():
    seen, _, loader = train(holdout_fraction=0.25)
    assert [len(step) for step in seen] == [8] * 6
    assert all(min(step[:6]) >= 100 and max(step[6:]) < NUM for step in seen)
    assert len({number for step in seen for number in step[6:]}) == 12
    report = loader.report()
    assert (report.num_selected, report.num_candidates) == (36, 120)  # holdout examples are not selected


def test_a_resumed_run_draws_the_same_holdout_examples():
    seen, states, _ = train(holdout_fraction=0.25)
    rest, _, _ = train(holdout_fraction=0.25, state=states[2])
    assert rest == seen[3:]


@pytest.mark.parametrize(("share", "text"), [(0.01, "draws 0 of the 8 "), (0.97, "draws 8 of the 8 ")])
def test_shares_that_draw_nothing_or_leave_nothing_are_refused(share, text):
    with pytest.raises(
        ValueError, match=re.escape(f"holdout_fraction={share} {text}examples per step from the holdout")
    ):
        train(holdout_fraction=share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"auxiliary": reducr.Auxiliary(extra_batches=batches_of("list"))},
            "`holdout_fraction` and the `extra_batches` of `auxiliary` both add examples to each step. Use one.",
        ),
        (
            {"distributed": "local"},
            "Extra batches work in one process only in this version. Leave distributed='local' or",
        ),
    ],
)
def test_what_cannot_go_with_draws(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler("uniform", holdout=batches_of("list"), holdout_fraction=0.5, **options)
