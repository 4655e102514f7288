import numpy as np
import pytest
from PIL import Image

from image_files import picture, write
from reducr.data.io.image_decoding import decoded_image, decoded_image_or_fault


def bilinear(pixels, size):
    """Triangle-weighted mean along both axes in float64: one pixel at a time, from the definition."""
    for axis, new in ((0, size[0]), (1, size[1])):
        old = pixels.shape[axis]
        scale = old / new
        radius = max(scale, 1.0)
        rows = []
        for place in range(new):
            centre = (place + 0.5) * scale
            weights = np.clip(1 - np.abs((np.arange(old) + 0.5 - centre) / radius), 0, None)
            rows.append(np.tensordot(weights / weights.sum(), pixels, axes=(0, axis)))
        pixels = np.moveaxis(np.stack(rows), 0, axis)
    return pixels


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((40, 30), (16, 21), (2, 4)),  # floor(16 * 40 / 30) = 21; (21 - 12) / 2 = 4.5 rounds to the even 4
        ((30, 40), (21, 16), (4, 2)),
        ((33, 33), (16, 16), (2, 2)),
        ((9, 6), (16, 24), (2, 6)),
    ],
)
def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path, size, resized, corner):
    pixels = picture(*size)
    top, left = corner
    decoded = decoded_image(write(tmp_path / "a.png", pixels), image_size=12, resize=16)
    expected = bilinear(pixels.astype(np.float64), resized)[top : top + 12, left : left + 12].transpose(2, 0, 1)
    assert decoded.shape == (3, 12, 12)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() <= 1.0


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = picture(32, 32)
    decoded = decoded_image(write(tmp_path / "a.png", pixels), image_size=32, resize=32)
    assert np.array_equal(decoded, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(515, 513), (513, 514), (300, 290), (2100, 260)])
def test_a_jpeg_is_decoded_at_a_smaller_size_to_nearly_the_same_pixels(tmp_path, width, height):
    pixels = picture(width, height)
    path = write(tmp_path / "a.jpg", pixels, quality=95)
    expected = decoded_image(write(tmp_path / "a.png", pixels), image_size=56, resize=64)
    difference = np.abs(decoded_image(path, image_size=56, resize=64).astype(int) - expected)
    assert difference.mean() < 1.0
    assert difference.max() <= 12


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path, orientation, suffix):
    upright = picture(48, 32)
    # how a camera stores the upright picture, for each orientation of the standard
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, quality=95)
    expected = decoded_image(write(tmp_path / "b.png", upright), image_size=16, resize=16)
    difference = np.abs(decoded_image(path, image_size=16, resize=16).astype(int) - expected)
    assert difference.max() <= (1 if suffix in {"png", "tif"} else 12)


def solid(path, mode, colour):
    Image.new(mode, (6, 6), colour).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("a.png", "L", 77, (77, 77, 77)),
        ("a.png", "1", 1, (255, 255, 255)),
        ("a.png", "LA", (77, 10), (77, 77, 77)),
        ("a.png", "RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("a.png", "I;16", 77 * 256 + 200, (77, 77, 77)),
        ("a.tif", "I;16", 77 * 256 + 200, (77, 77, 77)),
        ("a.jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("a.bmp", "RGB", (10, 20, 30), (10, 20, 30)),
        ("a.gif", "RGB", (10, 20, 30), (10, 20, 30)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, name, mode, colour, expected):
    decoded = decoded_image(solid(tmp_path / name, mode, colour), image_size=4, resize=4)
    assert np.abs(decoded.astype(int) - np.array(expected)[:, None, None]).max() <= (2 if mode == "CMYK" else 0)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_becomes_rgb_with_or_without_transparency(tmp_path, name, transparency):
    if name == "a.gif" and isinstance(transparency, bytes):
        transparency = 2
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 1, 2, 3])
    image.save(tmp_path / name, transparency=transparency)
    decoded = decoded_image(tmp_path / name, image_size=6, resize=6)
    assert decoded[:, 0, 0].tolist() == [200, 100, 50]


def test_pixels_without_a_range_are_an_error(tmp_path):
    path = solid(tmp_path / "a.tif", "F", 0.5)
    message = "pixels of mode F have no defined range; save the image with 8 or 16 bits"
    with pytest.raises(ValueError, match=message):
        decoded_image(path, image_size=4, resize=4)
    assert decoded_image_or_fault(path, image_size=4, resize=4) == message
