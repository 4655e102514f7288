import re
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from reducr.data.core.transforms import Augment, Preprocess

CIFAR = ([0.5] * 3, [0.5] * 3)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Preprocess


def test_every_channel_is_standardised_by_its_own_statistics():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = Preprocess([0.1, 0.2, 0.5], [0.5, 0.25, 2.0])(images)
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == pytest.approx([-0.1 / 0.5, (51 / 255 - 0.2) / 0.25, 0.5 / 2.0], abs=1e-7)


def test_cifar_pixels_become_minus_one_to_one():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = Preprocess(*CIFAR)(images)
    assert (float(result.min()), float(result.max())) == (-1.0, 1.0)
    torch.testing.assert_close(result[0, 2].flatten(), torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)


def test_floats_are_not_rescaled():
    images = pixels(4, 3, 8, 8)
    preprocess = Preprocess(*CIFAR, resize=6, center_crop=5)
    torch.testing.assert_close(preprocess(images / 255), preprocess(images), atol=1e-6, rtol=0)


def test_the_statistics_are_buffers_and_images_follow_their_dtype():
    preprocess = Preprocess([0.1, 0, 1], [1, 2, 3])
    assert {name: tensor.flatten().tolist() for name, tensor in preprocess.state_dict().items()} == {
        "mean": [pytest.approx(0.1), 0.0, 1.0],
        "standard_deviation": [1.0, 2.0, 3.0],
    }
    assert list(preprocess.parameters()) == []
    for images in (pixels(1, 3, 4, 4), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4, dtype=torch.float64)):
        assert preprocess.float()(images).dtype == torch.float32
        assert preprocess.bfloat16()(images).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "resize", "center_crop", "expected"),
    [
        ((48, 64), 24, None, (24, 32)),
        ((64, 48), 24, None, (32, 24)),
        ((50, 75), 256, 224, (224, 224)),
        ((300, 451), 256, None, (256, 384)),
        ((10, 10), 10, 10, (10, 10)),
        ((9, 40), None, 8, (8, 8)),
        ((9, 40), None, None, (9, 40)),
    ],
)
def test_sizes(shape, resize, center_crop, expected):
    result = Preprocess(*CIFAR, resize=resize, center_crop=center_crop)(pixels(2, 3, *shape))
    assert result.shape == (2, 3, *expected)


@pytest.mark.parametrize(("height", "width", "resize"), [(40, 60, 16), (33, 32, 9), (20, 31, 50)])
def test_resizing_is_pillows_antialiased_bilinear(height, width, resize):
    images = pixels(2, 3, height, width)
    size = (width * resize // min(height, width), height * resize // min(height, width))
    expected = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR))
        for image in images
    ]
    result = Preprocess([0.0] * 3, [1.0] * 3, resize=resize)(images) * 255
    # pillow rounds to whole numbers after each of its two passes
    np.testing.assert_allclose(result.permute(0, 2, 3, 1), np.stack(expected), atol=1.01)


def test_the_crop_is_the_middle():
    images = pixels(1, 1, 9, 12)
    result = Preprocess([0.0], [1 / 255], center_crop=4)(images)
    torch.testing.assert_close(result, images[:, :, 2:6, 4:8].float())


def test_a_flat_image_stays_flat():
    result = Preprocess([0.25], [0.5], resize=7, center_crop=5)(torch.full((1, 1, 30, 20), 0.75))
    torch.testing.assert_close(result, torch.ones(1, 1, 5, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (([0.5] * 3, [0.5]), "must have one value for each channel; got 3 and 1 values."),
        (([], []), "must have one value for each channel; got 0 and 0 values."),
        (([0.5, float("nan")], [0.5, 0.5]), "mean must be finite; got [0.5, nan]."),
        (([0.5, 0.5], [0.5, 0.0]), "standard_deviation must be finite and above 0; got [0.5, 0.0]."),
        (([0.5], [-0.5]), "standard_deviation must be finite and above 0; got [-0.5]."),
        (([0.5], [float("inf")]), "standard_deviation must be finite and above 0; got [inf]."),
    ],
)
def test_invalid_statistics_are_errors(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Preprocess(*options)


@pytest.mark.parametrize("option", ["resize", "center_crop"])
@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_invalid_sizes_are_errors(option, size):
    message = f"{option} must be a whole number of pixels, at least 1, or null; got {size!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        Preprocess(*CIFAR, **{option: size})


def test_a_crop_larger_than_the_resized_image_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"center_crop must be at most resize=200; got 224\."):
        Preprocess(*CIFAR, resize=200, center_crop=224)


def test_a_crop_larger_than_the_image_is_an_error():
    with pytest.raises(
        ValueError, match=r"center_crop=28 is larger than the images, 32 x 20\. Reduce it, or set `resize` too"
    ):
        Preprocess(*CIFAR, center_crop=28)(pixels(1, 3, 32, 20))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 4, 4), "mean has 3 values, one for each channel; got images with 1 channels."),
        (
            torch.zeros(3, 4, 4),
            "images must be (B, K, H, W), uint8 in 0..255 or floats in [0, 1]; got shape (3, 4, 4)",
        ),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "got shape (1, 3, 4, 4), int64."),
    ],
)
def test_other_tensors_than_images_are_errors(images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Preprocess(*CIFAR)(images)


# Augment


def windows(image, padding, flips):
    """Every image that augmentation may make of ``image`` (K, H, W): bytes -> how it was made."""
    height, width = image.shape[1:]
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    made = {}
    for top, left, flip in product(range(2 * padding + 1), range(2 * padding + 1), flips):
        window = padded[:, top : top + height, left : left + width]
        made[(window[:, :, ::-1] if flip else window).tobytes()] = (top, left, flip)
    return made


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 7, 12)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("options", "padding", "flips"),
    [
        ({"crop_padding": 4, "flip": True}, 4, (False, True)),
        ({"crop_padding": 1}, 1, (False,)),
        ({"flip": True}, 0, (False, True)),
    ],
    ids=["crop_flip", "crop", "flip"],
)
def test_every_image_is_a_window_of_its_padded_self(shape, dtype, options, padding, flips):
    images = pixels(12, *shape).to(dtype)
    before = images.clone()
    torch.manual_seed(1)
    augmented = Augment(**options)(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype
    assert torch.equal(images, before)
    made = [windows(old, padding, flips)[new.numpy().tobytes()] for old, new in zip(images, augmented, strict=True)]
    assert len(set(made)) > 1


def test_all_crops_and_both_directions_are_equally_likely():
    num_draws, image = 20_000, torch.arange(1, 82, dtype=torch.uint8).view(1, 9, 9)
    torch.manual_seed(0)
    augmented = Augment(crop_padding=2, flip=True)(image.expand(num_draws, 1, 9, 9))
    made = windows(image, 2, (False, True))
    counts = dict.fromkeys(made.values(), 0)
    for new in augmented:
        counts[made[new.numpy().tobytes()]] += 1
    assert len(counts) == 50
    expected = num_draws / 50
    # 49 degrees of freedom; above 85.4 with probability 0.001
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 85.4


def test_draws_use_only_torchs_generator():
    images, augment = pixels(64, 3, 16, 16), Augment(crop_padding=4, flip=True)
    torch.manual_seed(3)
    first, second = augment(images), augment(images)
    torch.manual_seed(3)
    torch.rand(5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(Augment(crop_padding=4, flip=True).eval()(images), first)
    assert not torch.equal(first, second)


def test_the_draws_are_column_row_and_direction_in_this_order():
    images, size = pixels(40, 3, 9, 12), 40
    torch.manual_seed(7)
    left, top = ((torch.rand(size) * 5).long().tolist() for _ in range(2))
    is_mirrored = torch.bernoulli(torch.full((size,), 0.5)).bool().tolist()
    torch.manual_seed(7)
    augmented = Augment(crop_padding=2, flip=True)(images)
    for image, new, x, y, mirrored in zip(images, augmented, left, top, is_mirrored, strict=True):
        window = torch.nn.functional.pad(image, (2, 2, 2, 2))[:, y : y + 9, x : x + 12]
        assert torch.equal(new, window.flip(2) if mirrored else window)


def test_an_empty_batch_stays_empty():
    assert Augment(crop_padding=2, flip=True)(pixels(0, 3, 9, 12)).shape == (0, 3, 9, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Augment has no effect. Set `crop_padding`, `flip=true` or both, or remove it."),
        ({"crop_padding": 0}, "crop_padding must be a whole number of pixels, at least 1, or null; got 0."),
        ({"crop_padding": 1.5, "flip": True}, "crop_padding must be a whole number of pixels, at least 1"),
    ],
)
def test_augmentation_without_effect_is_an_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augment(**options)


@pytest.mark.parametrize("images", [torch.zeros(4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int32)])
def test_augmenting_other_tensors_than_images_is_an_error(images):
    with pytest.raises(ValueError, match=re.escape("images must be (B, K, H, W), uint8")):
        Augment(flip=True)(images)
