"""The cache of images on disk."""

import json
import os
import resource

import numpy as np
import pytest
import torch

from image_files import damage, picture, read, write, write_all


def cache_files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_is_used_while_the_files_are_the_same(tmp_path):
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


def test_the_cache_is_used_after_the_data_have_moved(tmp_path):
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
def test_an_incomplete_cache_is_rebuilt(tmp_path, harm):
    paths, pixels = write_all(tmp_path)
    cache = tmp_path / "cache"
    read(paths, "disk", folder=cache)
    harm(next(cache.glob("*.npy")), next(cache.glob("*.json")))
    pool, _ = read(paths, "disk", folder=cache)
    assert torch.equal(pool[torch.arange(7)], pixels)
    assert torch.equal(torch.from_numpy(np.load(next(cache.glob("*.npy")))), pixels)


def test_an_interrupted_build_leaves_no_files(tmp_path):
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


def test_a_skipped_file_is_tried_again(tmp_path):
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


def test_a_cache_with_skipped_images_is_an_error_without_skip(tmp_path):
    paths, _ = write_all(tmp_path)
    damage(paths)
    read(paths, "disk", folder=tmp_path / "cache", unreadable="skip")
    with pytest.raises(ValueError, match=r"3 of 7 images cannot be read; the first is .*1\.png"):
        read(paths, "disk", folder=tmp_path / "cache")
