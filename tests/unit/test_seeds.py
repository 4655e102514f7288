import random

import numpy as np
import torch

from reducr._internal.seeds import mixed_seed
from reducr.data.published.digits import Digits
from reducr.pipeline.setup import SeedData, scoped_seed


def test_every_word_changes_the_seed_within_32_bits():
    seeds = [mixed_seed(*words) for words in ((0, 0), (0, 1), (1, 0), (1, 1), (2**40, 1), (2**40, 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert mixed_seed(3, 4) == mixed_seed(3, 4)


def drawn():
    return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002


def test_a_seed_decides_what_python_numpy_and_torch_draw_and_leaves_no_trace():
    """Data sets, augmentations and models of users may draw from any of these."""
    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(5)
    outside = drawn()
    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(5)
    inside = []
    for seed in (0, 0, 1):
        with scoped_seed(seed):
            inside.append(drawn())
    assert inside[0] == inside[1]
    assert all(one != other for one, other in zip(inside[0], inside[2], strict=True))
    assert inside[0][2] == float(torch.rand((), generator=torch.Generator().manual_seed(0)))  # torch's stream as before
    assert drawn() == outside


def test_the_seed_of_a_run_decides_what_the_data_draws():
    class Noisy(Digits):
        def splits(self, *, seed):
            draws.append(drawn()[:2])
            return super().splits(seed=seed)

    draws = []
    for seed in (0, 0, 1):
        random.seed(len(draws))
        np.random.seed(len(draws))  # noqa: NPY002
        SeedData.of(Noisy(holdout_size=100, test_size=100), seed)
    assert draws[0] == draws[1] != draws[2]
