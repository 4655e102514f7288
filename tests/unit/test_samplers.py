import math
import re

import pytest
import torch

from reducr.functional import (
    exponential_rank_log_probabilities,
    gumbel_top_k,
    power_log_probabilities,
    rank_log_probabilities,
    top_k,
)
from reducr.selectors import SAMPLERS
from reducr.selectors.samplers import make_sampler


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_top_k_breaks_ties_by_the_earlier_position():
    assert top_k(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 4).tolist() == [1, 2, 4, 3]
    assert top_k(torch.zeros(400), 30).tolist() == list(range(30))


def test_power_by_hand():
    logs = power_log_probabilities(torch.tensor([4.0, 1.0, 0.0, -3.0]), beta=0.5)
    assert logs.tolist() == pytest.approx([math.log(2), 0.0, -1e9, -1e9])


def test_examples_without_a_positive_score_are_drawn_last():
    scores = torch.tensor([-1.0, 1e-9, 0.0, 100.0, 2.0, -5.0])
    lasts = set()
    for seed in range(40):
        drawn = gumbel_top_k(power_log_probabilities(scores, beta=1.0), 6, generator=seeded(seed)).tolist()
        assert set(drawn[:3]) == {1, 3, 4}
        lasts.add(tuple(drawn[3:]))
    assert len(lasts) == 6


def test_rank_by_hand():
    logs = rank_log_probabilities(torch.tensor([0.1, 5.0, 5.0, 2.0]), beta=2.0)
    assert logs.tolist() == pytest.approx([-2 * math.log(rank) for rank in (4, 1, 2, 3)])


def test_exponential_rank_by_hand():
    logs = exponential_rank_log_probabilities(torch.tensor([0.1, 5.0, 2.0, 7.0]), pressure=100.0)
    assert logs.tolist() == pytest.approx([-math.log(100) * rank / 4 for rank in (4, 2, 3, 1)])


def test_exponential_rank_favours_the_best_as_published():
    """First draws of 20 examples: probability of rank j proportional to 100^(-j / 20)."""
    scores = torch.arange(20.0)
    sample = make_sampler("exponential_rank")
    generator, num_draws = seeded(1), 3000
    hits = [0] * 20
    for _ in range(num_draws):
        hits[int(sample(scores, 1, epoch=0, generator=generator)[0])] += 1
    powers = [100 ** (-(20 - position) / 20) for position in range(20)]
    for position in range(20):
        probability = powers[position] / sum(powers)
        error = 4.5 * math.sqrt(num_draws * probability * (1 - probability))
        assert abs(hits[position] - num_draws * probability) <= error


def test_a_vanishing_temperature_is_top_k():
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5])
    drawn = make_sampler("softmax", temperature=1e-6)(scores, 3, epoch=0, generator=seeded())
    assert drawn.tolist() == [1, 3, 0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [8.0, 6.125, 4.25, 2.375, 0.5, 0.5]),
        ("geometric", [8.0, 4.0, 2.0, 1.0, 0.5, 0.5]),
    ],
)
def test_temperature_schedules(schedule, expected):
    sampler = make_sampler(
        "softmax", temperature=8.0, temperature_schedule=schedule, final_temperature=0.5, num_epochs=5
    )
    assert [sampler.temperature_at(epoch) for epoch in range(6)] == pytest.approx(expected)


def test_a_fixed_temperature_stays():
    sampler = make_sampler("softmax", temperature=3.0)
    assert [sampler.temperature_at(epoch) for epoch in (0, 1, 1000)] == [3.0] * 3


def test_the_schedule_reaches_the_draw():
    sampler = make_sampler(
        "softmax", temperature=1e6, temperature_schedule="linear", final_temperature=1e-6, num_epochs=2
    )
    scores = torch.arange(50.0)
    assert sampler(scores, 3, epoch=1, generator=seeded()).tolist() == [49, 48, 47]
    assert sampler(scores, 3, epoch=0, generator=seeded()).tolist() == (
        gumbel_top_k(scores.double() / 1e6, 3, generator=seeded()).tolist()
    )


@pytest.mark.parametrize(
    ("options", "uniform_epochs"),
    [
        ({"uniform_first_epochs": 2}, {0, 1}),
        ({"uniform_last_epochs": 3, "num_epochs": 6}, {3, 4, 5}),
        ({"uniform_first_epochs": 1, "uniform_last_epochs": 1, "num_epochs": 6}, {0, 5}),
    ],
)
def test_the_first_and_last_epochs_are_uniform(options, uniform_epochs):
    sampler = make_sampler("top_k", **options)
    scores = torch.arange(100.0)
    for epoch in range(6):
        drawn = sampler(scores, 3, epoch=epoch, generator=seeded()).tolist()
        assert (drawn != [99, 98, 97]) == (epoch in uniform_epochs)


def test_a_schedule_and_uniform_epochs_share_num_epochs():
    sampler = make_sampler(
        "softmax",
        temperature=1.0,
        temperature_schedule="linear",
        final_temperature=0.5,
        num_epochs=3,
        uniform_last_epochs=1,
    )
    assert sampler.sampler.temperature_at(2) == 0.5
    assert sampler.uniform_from == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("top_q", {}, "unknown sampler 'top_q'. Did you mean 'top_k'?"),
        ("power", {"betta": 1.0}, "unknown option 'betta' of sampler 'power'. Did you mean 'beta'?"),
        ("top_k", {"temperature": 1.0}, "unknown option 'temperature' of sampler 'top_k'"),
        ("power", {"beta": -1.0}, "beta must be a finite number of at least 0; got -1.0."),
        ("rank", {"beta": float("nan")}, "beta must be a finite number of at least 0; got nan."),
        ("softmax", {"temperature": 0.0}, "temperature must be a finite number above 0; got 0.0."),
        ("exponential_rank", {"pressure": 0.5}, "pressure must be a finite number of at least 1; got 0.5."),
        (
            "softmax",
            {"temperature_schedule": "lineal"},
            "unknown temperature_schedule 'lineal'. Did you mean 'linear'?",
        ),
        (
            "softmax",
            {"temperature_schedule": "linear", "final_temperature": 1.0},
            "temperature_schedule 'linear' or 'geometric' needs final_temperature and num_epochs",
        ),
        (
            "softmax",
            {"final_temperature": 0.5},
            "temperature_schedule 'linear' or 'geometric' needs final_temperature and num_epochs",
        ),
        (
            "softmax",
            {"temperature_schedule": "geometric", "final_temperature": 0.0, "num_epochs": 3},
            "final_temperature must be a finite number above 0; got 0.0.",
        ),
        (
            "softmax",
            {"temperature_schedule": "linear", "final_temperature": 1.0, "num_epochs": 1},
            "num_epochs must be a whole number of at least 2; got 1.",
        ),
        ("top_k", {"uniform_last_epochs": 1}, "uniform_last_epochs needs num_epochs"),
        ("top_k", {"uniform_first_epochs": -1}, "uniform_first_epochs must be a whole number of at least 0; got -1."),
        ("top_k", {"num_epochs": 5}, "num_epochs=5 has no effect without uniform_last_epochs"),
    ],
)
def test_wrong_options_are_refused_at_construction(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_sampler(name, **options)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_takes_the_options_for_uniform_epochs(name):
    sampler = make_sampler(name, uniform_first_epochs=1)
    assert isinstance(sampler.sampler, SAMPLERS[name])


def test_extreme_options_draw_the_best_examples():
    """Products and quotients do not overflow into ties."""
    scores = torch.tensor([1.0, 3e38, 0.5, -3e38, 1e-30, 2.0], dtype=torch.float64)
    best = [1, 5, 0, 2, 4, 3]
    for name, options in (
        ("softmax", {"temperature": 5e-324}),
        ("power", {"beta": 1e308}),
        ("rank", {"beta": 1e308}),
    ):
        sampler = make_sampler(name, **options)
        assert sampler(scores, 6, epoch=0, generator=seeded()).tolist() == best, name


@pytest.mark.parametrize("beta", [1e3, 1e9, 1e308])
def test_examples_without_a_positive_score_come_last_at_any_power(beta):
    sampler = make_sampler("power", beta=beta)
    for seed in range(5):
        scores = torch.tensor([0.0, 1e-200, -1.0, 0.1, 0.0], dtype=torch.float64)
        drawn = sampler(scores, 5, epoch=0, generator=seeded(seed)).tolist()
        assert drawn[:2] == [3, 1]
        assert sorted(drawn[2:]) == [0, 2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_selected", [1, 40, 511, 512, 513, 2048])
def test_the_largest_of_many_are_those_of_a_stable_sort(num_selected, dtype):
    """With ties, infinite scores and NaN, which come first as in a sort."""
    generator = torch.Generator().manual_seed(0)
    distinct = torch.rand(2048, dtype=torch.float64, generator=generator).to(dtype)
    tied = (distinct * 20).floor()
    infinite, some_nan, most_nan = tied.clone(), tied.clone(), distinct.clone()
    infinite[100:] = -torch.inf
    some_nan[5:500:90] = torch.nan
    most_nan[::2] = torch.nan
    for scores in (distinct, tied, infinite, some_nan, most_nan, torch.zeros_like(tied)):
        expected = torch.sort(scores, descending=True, stable=True).indices[:num_selected]
        assert torch.equal(top_k(scores, num_selected), expected)
