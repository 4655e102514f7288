import re

import pytest
import torch

from reducr.data.core.input_noise import InputNoise, make_input_noise
from reducr.data.core.inputs import Overlaid


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Counted:
    """A pool that is no tensor, and remembers which inputs were read."""

    def __init__(self, inputs):
        self.inputs, self.read = inputs, []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, positions):
        self.read += positions.tolist()
        return self.inputs[positions]


def all_of(inputs):
    return inputs[torch.arange(len(inputs))]


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.26, 26), (1, 100)])
def test_an_exact_number_of_inputs_of_the_part_changes(fraction, expected):
    pool, source = torch.zeros(300, 4), torch.arange(299, -1, -3)
    noisy, is_corrupted = InputNoise(fraction, 2.0).noisy(pool, source, generator=seeded())
    assert (len(is_corrupted), int(is_corrupted.sum()), is_corrupted.dtype) == (100, expected, torch.bool)
    assert len(noisy) == 300
    is_changed = (all_of(noisy) != 0).any(dim=1)
    assert torch.nonzero(is_changed).flatten().tolist() == sorted(source[is_corrupted].tolist())
    assert not bool(pool.any())


def test_the_noise_is_gaussian_with_that_standard_deviation():
    noisy, _ = InputNoise(1.0, 3.0).noisy(torch.full((2000, 8), 5.0), torch.arange(2000), generator=seeded())
    standard = (all_of(noisy) - 5) / 3
    assert abs(float(standard.mean())) <= 4.5 / 16_000**0.5
    assert abs(float(standard.std()) - 1) <= 4.5 / 32_000**0.5
    assert abs(float((standard.abs() < 1).float().mean()) - 0.6827) <= 4.5 * (0.6827 * 0.3173 / 16_000) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_keep_their_dtype_and_are_not_clamped(dtype):
    inputs = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3)
    noisy, _ = InputNoise(1.0, 0.5).noisy(inputs, torch.arange(4), generator=seeded())
    from_zero, _ = InputNoise(1.0, 0.5).noisy(torch.zeros(4, 3), torch.arange(4), generator=seeded())
    assert all_of(noisy).dtype == dtype
    torch.testing.assert_close(all_of(noisy), (inputs + all_of(from_zero)).to(dtype))


def test_pixels_are_rounded_and_clamped():
    pixels = torch.full((1000, 3), 128, dtype=torch.uint8)
    noisy, _ = InputNoise(1.0, 100.0).noisy(pixels, torch.arange(1000), generator=seeded())
    exact, _ = InputNoise(1.0, 100.0).noisy(pixels.float(), torch.arange(1000), generator=seeded())
    assert all_of(noisy).dtype == torch.uint8
    assert all_of(noisy).tolist() == all_of(exact).round().clamp(0, 255).tolist()
    assert (int(all_of(noisy).min()), int(all_of(noisy).max())) == (0, 255)


def test_the_noise_is_fixed_and_only_noisy_inputs_are_stored():
    pool = Counted(torch.arange(20.0).reshape(10, 2))
    noisy, is_corrupted = InputNoise(0.5, 1.0).noisy(pool, torch.arange(4, 10), generator=seeded())
    assert sorted(pool.read) == (torch.nonzero(is_corrupted).flatten() + 4).tolist()
    positions = torch.tensor([9, 4, 0, 9, 7])
    assert torch.equal(noisy[positions], noisy[positions])
    assert torch.equal(noisy[positions], all_of(noisy)[positions])


def test_the_seed_determines_the_inputs_and_the_noise():
    first, second, other = (
        all_of(InputNoise(0.5, 1.0).noisy(torch.zeros(20, 2), torch.arange(20), generator=seeded(seed))[0])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_parts_are_made_noisy_one_after_the_other():
    pool = torch.zeros(10, 1)
    once, _ = InputNoise(1.0, 1.0).noisy(pool, torch.arange(5), generator=seeded(1))
    twice, _ = InputNoise(1.0, 1.0).noisy(once, torch.arange(5, 8), generator=seeded(2))
    assert torch.equal(all_of(twice)[:5], all_of(once)[:5])
    assert (all_of(twice)[5:] != 0).flatten().tolist() == [True] * 3 + [False] * 2


def test_an_overlaid_pool_reads_replaced_rows_in_any_order_and_keeps_its_base():
    base = torch.arange(5.0)
    inputs = Overlaid(base, torch.tensor([3, 0]), torch.tensor([-3.0, -1.0]))
    assert inputs[torch.tensor([0, 1, 3, 3, 4])].tolist() == [-1.0, 1.0, -3.0, -3.0, 4.0]
    assert inputs[torch.empty(0, dtype=torch.int64)].tolist() == []
    assert len(inputs) == 5
    assert base.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_token_ids_are_an_error(dtype):
    message = (
        "Input noise needs uint8 or float inputs, such as images or numbers; got "
        f"{str(dtype).removeprefix('torch.')}, such as token ids. Remove `input_noise`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        InputNoise(0.5, 1.0).noisy(torch.zeros(4, 2, dtype=dtype), torch.arange(4), generator=seeded())


def test_input_noise_from_a_yaml():
    name = "datamodule.input_noise.train"
    assert make_input_noise(None, name=name) is None
    assert make_input_noise({"fraction": 0.1, "standard_deviation": 25}, name=name) == InputNoise(0.1, 25)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            0.1,
            "standard_deviation, in units of the input, such as {fraction: 0.1, standard_deviation: 25}; got 0.1.",
        ),
        ({}, "X must be null or a mapping with fraction, the share of noisy inputs, and standard_deviation"),
        ({"fraction": 0.1}, "X needs fraction and standard_deviation. Missing: standard_deviation."),
        (
            {"fraction": 0.1, "standard_deviaton": 1},
            "unknown option 'standard_deviaton' of X. Did you mean 'standard_deviation'?",
        ),
        ({"fraction": 1.1, "standard_deviation": 1}, "X: the fraction of noisy inputs must be in [0, 1]; got 1.1."),
        ({"fraction": None, "standard_deviation": 1}, "X: the fraction of noisy inputs must be in [0, 1]; got None."),
        ({"fraction": 0.1, "standard_deviation": 0}, "X: standard_deviation must be a finite number above 0; got 0."),
        ({"fraction": 0.1, "standard_deviation": float("inf")}, "must be a finite number above 0; got inf."),
        ({"fraction": 0.1, "standard_deviation": "1"}, "must be a finite number above 0; got '1'."),
    ],
)
def test_an_invalid_option_is_an_error(value, message):
    name = "datamodule.input_noise.train"
    with pytest.raises(ValueError, match=re.escape(message.replace("X", name))):
        make_input_noise(value, name=name)
