import pytest
import torch

from reducr.data.corruption import uniform_label_noise


def noise(targets, *, fraction, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return uniform_label_noise(targets, fraction=fraction, num_classes=num_classes, generator=generator)


@pytest.mark.parametrize(
    ("fraction", "size", "expected"), [(0.0, 10, 0), (0.3, 10, 3), (1.0, 10, 10), (0.26, 10, 3), (0.5, 0, 0)]
)
def test_the_number_of_flips_is_exact(fraction, size, expected):
    targets = torch.arange(size) % 4
    noisy, is_corrupted = noise(targets, fraction=fraction, num_classes=4)
    assert int(is_corrupted.sum()) == expected
    assert torch.equal(noisy != targets, is_corrupted)
    assert noisy.dtype == torch.int64


def test_flips_go_to_all_other_classes_equally():
    noisy, _ = noise(torch.full((4000,), 2), fraction=1.0, num_classes=5)
    counts = torch.bincount(noisy, minlength=5).tolist()
    assert counts[2] == 0
    for target in (0, 1, 3, 4):
        assert abs(counts[target] - 1000) <= 4.5 * (4000 * 0.25 * 0.75) ** 0.5


def test_flips_hit_all_points_equally():
    _, is_corrupted = noise(torch.zeros(4000), fraction=0.5, num_classes=2)
    assert abs(int(is_corrupted[:2000].sum()) - 1000) <= 4.5 * (4000 * 0.25 / 4) ** 0.5


def test_one_seed_gives_one_noise():
    targets = torch.arange(50) % 4
    first, second, other = (noise(targets, fraction=0.5, num_classes=4, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 30, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"noisy labels must be in \[0, 1\]; got {fraction}"):
        noise(torch.zeros(3), fraction=fraction, num_classes=2)


def test_noise_needs_another_class():
    with pytest.raises(ValueError, match="label noise needs another class to change to; got num_classes=1"):
        noise(torch.zeros(3), fraction=0.5, num_classes=1)
