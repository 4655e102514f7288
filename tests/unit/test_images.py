import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reducr.data.io.images import ImageDataModule, ImageFiles, MappedArray, decoded_image, read_images, same_files

HOLDS = ("memory", "disk", "stream")


def picture(width, height, seed=0):
    """A smooth colour picture (H, W, 3), so that JPEG keeps it."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write(path, pixels, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def write_all(folder, num_images=7, size=8):
    """PNG files, whose pixels are kept exactly, and these pixels (N, 3, S, S)."""
    pixels = [picture(size, size, seed) for seed in range(num_images)]
    paths = [write(folder / f"{place}.png", image) for place, image in enumerate(pixels)]
    return paths, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def read(paths, hold="memory", *, folder=None, **options):
    options = {"image_size": 8, **options}
    return read_images(paths, hold=hold, cache_dir=folder if hold == "disk" else None, **options)


# decoding


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
def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path, size, resized, corner):
    pixels = picture(*size)
    top, left = corner
    decoded = decoded_image(write(tmp_path / "a.png", pixels), image_size=12, resize=16)
    expected = bilinear(pixels.astype(np.float64), resized)[top : top + 12, left : left + 12].transpose(2, 0, 1)
    assert decoded.shape == (3, 12, 12)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() <= 1.0


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path):
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


def test_pixels_without_a_range_are_refused(tmp_path):
    path = solid(tmp_path / "a.tif", "F", 0.5)
    with pytest.raises(ValueError, match=r"\(pixels of mode F have no range; save it with 8 or 16 bits\)"):
        read([path])


# pools


@pytest.mark.parametrize("hold", HOLDS)
def test_every_pool_gives_the_images_at_any_positions(tmp_path, hold):
    paths, pixels = write_all(tmp_path)
    pool, is_readable = read(paths, hold, folder=tmp_path / "cache")
    assert isinstance(pool, {"memory": torch.Tensor, "disk": MappedArray, "stream": ImageFiles}[hold])
    assert len(pool) == 7
    assert is_readable.tolist() == [True] * 7
    for positions in ([0, 1, 2, 3, 4, 5, 6], [5, 1, 1], [3], []):
        batch = pool[torch.tensor(positions, dtype=torch.int64)]
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, pixels[positions])


@pytest.mark.parametrize("hold", HOLDS)
def test_a_batch_may_be_changed_without_changing_the_pool(tmp_path, hold):
    paths, pixels = write_all(tmp_path)
    pool, _ = read(paths, hold, folder=tmp_path / "cache")
    pool[torch.tensor([2])].zero_()
    assert torch.equal(pool[torch.tensor([2])], pixels[[2]])


@pytest.mark.parametrize("hold", HOLDS)
def test_more_images_than_are_decoded_at_a_time_stay_in_order(tmp_path, hold):
    paths, pixels = write_all(tmp_path, num_images=5, size=2)
    many = [paths[place % 5] for place in range(1203)]
    pool, _ = read(many, hold, folder=tmp_path / "cache", image_size=2)
    assert torch.equal(pool[torch.arange(1203)], pixels[torch.arange(1203) % 5])


def damage(paths):
    """A missing file, one that is no image, and one that ends too early; returns the positions."""
    paths[1].unlink()
    paths[2].write_text("<html>not found</html>")
    paths[5].write_bytes(paths[5].read_bytes()[:-40])
    return [1, 2, 5]


@pytest.mark.parametrize("hold", ["memory", "disk"])
def test_unreadable_images_are_an_error_that_names_the_first(tmp_path, hold):
    paths, _ = write_all(tmp_path)
    damage(paths)
    with pytest.raises(ValueError, match=re.escape(str(paths[1]))) as caught:
        read(paths, hold, folder=tmp_path / "cache")
    assert str(caught.value) == (
        f"{paths[1]} cannot be read as an image (No such file or directory), nor can 2 more of 7. Get the files again, "
        "or leave such images out: datamodule.unreadable=skip."
    )
    assert not list(tmp_path.glob("cache/*"))
    assert not list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize("hold", ["memory", "disk"])
def test_unreadable_images_can_be_left_out(tmp_path, hold):
    paths, pixels = write_all(tmp_path)
    damaged = damage(paths)
    kept = [place for place in range(7) if place not in damaged]
    for _ in range(2):  # made, then from the cache
        pool, is_readable = read(paths, hold, folder=tmp_path / "cache", unreadable="skip")
        assert torch.nonzero(is_readable).flatten().tolist() == kept
        assert len(pool) == 4
        assert torch.equal(pool[torch.arange(4)], pixels[kept])


def test_a_stream_finds_what_headers_tell_before_and_names_the_rest_when_it_is_read(tmp_path):
    paths, pixels = write_all(tmp_path)
    damage(paths)
    with pytest.raises(ValueError, match=r"nor can 1 more of 7"):
        read(paths, "stream")
    pool, is_readable = read(paths, "stream", unreadable="skip")
    assert torch.nonzero(~is_readable).flatten().tolist() == [1, 2]
    assert torch.equal(pool[torch.tensor([0, 1, 4])], pixels[[0, 3, 6]])
    with pytest.raises(ValueError, match=re.escape(f"{paths[5]} cannot be read as an image (")) as caught:
        pool[torch.tensor([0, 3])]
    assert "though its header could" in str(caught.value)
    assert "datamodule.unreadable=skip with datamodule.cache_dir=DIR" in str(caught.value)


def test_a_stream_with_a_cache_decodes_all_files_once(tmp_path):
    paths, pixels = write_all(tmp_path / "images")
    damaged = damage(paths)
    kept = [place for place in range(7) if place not in damaged]
    given = {"hold": "stream", "cache_dir": tmp_path / "cache", "image_size": 8}
    with pytest.raises(ValueError, match=rf"nor can {len(damaged) - 1} more of 7"):
        read_images(paths, **given)
    pool, is_readable = read_images(paths, **given, unreadable="skip")
    assert torch.nonzero(is_readable).flatten().tolist() == kept
    assert torch.equal(pool[torch.arange(len(kept))], pixels[kept])
    # what is remembered is not looked at again, as long as size and time are the same
    size, time = paths[0].stat().st_size, paths[0].stat().st_mtime_ns
    paths[0].write_bytes(bytes(size))
    os.utime(paths[0], ns=(time, time))
    assert torch.equal(read_images(paths, **given, unreadable="skip")[1], is_readable)
    os.utime(paths[0], ns=(1, 1))
    assert int(read_images(paths, **given, unreadable="skip")[1].sum()) == len(kept) - 1


@pytest.mark.parametrize("hold", HOLDS)
def test_no_readable_image_at_all_is_an_error_even_where_they_are_left_out(tmp_path, hold):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(ValueError, match=r"nor can 1 more of 2: no image is left\. Is datamodule\.data_dir the right"):
        read(paths, hold, folder=tmp_path / "cache", unreadable="skip")


def test_one_unreadable_image_is_told_as_one(tmp_path):
    paths, _ = write_all(tmp_path)
    paths[3].unlink()
    with pytest.raises(ValueError, match=r"3\.png cannot be read as an image \(.*\); the other 6 can\. Get the files"):
        read(paths)


def test_files_with_the_same_bytes_have_one_number(tmp_path):
    contents = [b"a", b"b", b"a", bytes(5000) + b"x", bytes(5000) + b"y", bytes(5000) + b"x", b"", b"aa"]
    paths = [tmp_path / str(place) for place in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    numbers = same_files([*paths, tmp_path / "missing", tmp_path / "nowhere"]).tolist()
    assert numbers[0] == numbers[2]
    assert numbers[3] == numbers[5]
    assert len(set(numbers)) == 8
    assert same_files([]).tolist() == []


# the cache on a disk


def cache_files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_cache_is_used_while_the_files_are_the_same(tmp_path):
    paths, pixels = write_all(tmp_path / "images")
    cache = tmp_path / "cache"
    read(paths, "disk", folder=cache)
    array, manifest = sorted(cache.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (array.suffix, manifest.suffix) == (".npy", ".json")
    assert np.array_equal(np.load(array), pixels.numpy())
    assert json.loads(manifest.read_text())["unreadable"] == []
    # other pixels in the array: what is read next comes from it, so nothing was decoded again
    np.save(array, 255 - pixels.numpy())
    pool, _ = read(paths, "disk", folder=cache)
    assert torch.equal(pool[torch.arange(7)], 255 - pixels)


def test_a_cache_is_used_after_the_data_have_moved(tmp_path):
    paths, pixels = write_all(tmp_path / "images")
    read(paths, "disk", folder=tmp_path / "cache")
    before = cache_files(tmp_path / "cache")
    (tmp_path / "images").rename(tmp_path / "moved")
    pool, _ = read([tmp_path / "moved" / path.name for path in paths], "disk", folder=tmp_path / "cache")
    assert cache_files(tmp_path / "cache") == before
    assert torch.equal(pool[torch.arange(7)], pixels)


def replace_image(paths):
    write(paths[2], picture(8, 8, seed=99))


def touch(paths):
    os.utime(paths[2], ns=(1, 1))


def swap(paths):
    paths[0], paths[1] = paths[1], paths[0]


def rename(paths):
    paths[6] = paths[6].rename(paths[6].with_name("z.png"))


@pytest.mark.parametrize("change", [replace_image, touch, swap, rename, lambda paths: paths.pop()])
def test_a_cache_of_other_files_is_not_used(tmp_path, change):
    paths, _ = write_all(tmp_path)
    read(paths, "disk", folder=tmp_path / "cache")
    change(paths)
    pool, _ = read(paths, "disk", folder=tmp_path / "cache")
    assert len(cache_files(tmp_path / "cache")) == 4
    assert torch.equal(pool[torch.arange(len(paths))], read(paths)[0])


@pytest.mark.parametrize("options", [{"image_size": 6}, {"resize": 9}])
def test_a_cache_of_another_size_is_not_used(tmp_path, options):
    paths, _ = write_all(tmp_path)
    read(paths, "disk", folder=tmp_path / "cache")
    pool, _ = read(paths, "disk", folder=tmp_path / "cache", **options)
    assert torch.equal(pool[torch.arange(7)], read(paths, **options)[0])


def cut(array, manifest):
    array.write_bytes(array.read_bytes()[:-1])


def lose_rows(array, manifest):
    np.save(array, np.load(array)[:-1])


def lose_manifest(array, manifest):
    manifest.unlink()


def lose_array(array, manifest):
    array.unlink()


def cut_manifest(array, manifest):
    manifest.write_text(manifest.read_text()[:-5])


def empty_manifest(array, manifest):
    manifest.write_text("[]")


@pytest.mark.parametrize("harm", [cut, lose_rows, lose_manifest, lose_array, cut_manifest, empty_manifest])
def test_a_half_cache_is_made_anew(tmp_path, harm):
    paths, pixels = write_all(tmp_path)
    cache = tmp_path / "cache"
    read(paths, "disk", folder=cache)
    harm(next(cache.glob("*.npy")), next(cache.glob("*.json")))
    pool, _ = read(paths, "disk", folder=cache)
    assert torch.equal(pool[torch.arange(7)], pixels)
    assert torch.equal(torch.from_numpy(np.load(next(cache.glob("*.npy")))), pixels)


def test_a_build_that_is_broken_off_leaves_nothing(tmp_path):
    paths, pixels = write_all(tmp_path, size=64)
    cache = tmp_path / "cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 64 * 64 * 2, hard))  # room for two images of seven
    try:
        with pytest.raises(OSError, match="File too large"):
            read(paths, "disk", folder=cache, image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []
    pool, _ = read(paths, "disk", folder=cache, image_size=64)
    assert torch.equal(pool[torch.arange(7)], pixels)


def test_a_file_the_cache_was_made_without_is_tried_again(tmp_path):
    paths, pixels = write_all(tmp_path)
    content, times = paths[3].read_bytes(), paths[3].stat()
    paths[3].write_bytes(bytes(len(content)))
    os.utime(paths[3], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(read(paths, "disk", folder=tmp_path / "cache", unreadable="skip")[0]) == 6
    paths[3].write_bytes(content)
    os.utime(paths[3], ns=(times.st_atime_ns, times.st_mtime_ns))
    pool, is_readable = read(paths, "disk", folder=tmp_path / "cache")
    assert bool(is_readable.all())
    assert torch.equal(pool[torch.arange(7)], pixels)


def test_a_cache_made_by_leaving_images_out_is_an_error_where_none_may_be(tmp_path):
    paths, _ = write_all(tmp_path)
    damage(paths)
    read(paths, "disk", folder=tmp_path / "cache", unreadable="skip")
    with pytest.raises(ValueError, match=r"1\.png cannot be read .* nor can 2 more of 7"):
        read(paths, "disk", folder=tmp_path / "cache")


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "datamodule.image_size must be a whole number of pixels, at least 1; got 0."),
        ({"image_size": 8.0}, "datamodule.image_size must be a whole number of pixels, at least 1; got 8.0."),
        ({"resize": 7}, "datamodule.resize must be null or a whole number of pixels, at least datamodule.image_size=8"),
        ({"hold": "ram"}, "unknown datamodule.hold 'ram'."),
        ({"hold": "dsk"}, "unknown datamodule.hold 'dsk'. Did you mean 'disk'? There are: disk, memory, stream."),
        ({"unreadable": "skp"}, "unknown datamodule.unreadable 'skp'. Did you mean 'skip'? There are: error, skip."),
        ({"hold": "disk"}, "datamodule.hold=disk needs datamodule.cache_dir=DIR"),
        ({"cache_dir": Path("c")}, "datamodule.cache_dir=c changes nothing with datamodule.hold=memory"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    options = {"image_size": 8, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        read_images([Path("a.png")], **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        Listed([], **options)


def test_no_files_are_an_error():
    with pytest.raises(ValueError, match=r"there are no images: the list of files is empty\."):
        read([])


# data modules


class Listed(ImageDataModule):
    """Images in a list: two classes in turn; the first four train, two hold out, the rest test."""

    def __init__(self, paths, **options):
        super().__init__(**options)
        self.paths = paths

    def read(self):
        positions = torch.arange(len(self.paths))
        return self.image_data(
            self.paths,
            target=positions % 2,
            parts={"train": positions[:4], "holdout": positions[4:6], "test": positions[6:]},
            group=positions % 3,
            num_groups=3,
            class_names=("even", "odd"),
            notes=("listed.",),
        )


def test_a_data_module_keeps_every_point_with_its_image(tmp_path):
    paths, pixels = write_all(tmp_path, num_images=9)
    raw = Listed(paths, image_size=8).read()
    assert torch.equal(raw.input, pixels)
    assert {part: places.tolist() for part, places in raw.parts.items()} == {
        "train": [0, 1, 2, 3],
        "holdout": [4, 5],
        "test": [6, 7, 8],
    }
    assert raw.notes == ("listed.",)


@pytest.mark.parametrize("hold", HOLDS)
def test_a_data_module_leaves_unreadable_images_out_of_every_part(tmp_path, hold):
    paths, pixels = write_all(tmp_path, num_images=9)
    paths[1].unlink()
    paths[7].unlink()
    cache_dir = str(tmp_path / "cache") if hold == "disk" else None
    raw = Listed(paths, image_size=8, unreadable="skip", hold=hold, cache_dir=cache_dir).read()
    kept = [0, 2, 3, 4, 5, 6, 8]
    assert raw.target.tolist() == [place % 2 for place in kept]
    assert raw.group.tolist() == [place % 3 for place in kept]
    assert raw.parts["train"].tolist() == [0, 1, 2]
    assert raw.parts["holdout"].tolist() == [3, 4]
    assert raw.parts["test"].tolist() == [5, 6]
    assert torch.equal(raw.input[raw.parts["test"]], pixels[[6, 8]])
    assert raw.notes == (
        "listed.",
        f"2 images of 9 left out, which cannot be read; the first is {paths[1]}.",
    )
