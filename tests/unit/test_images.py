import os
import re
from pathlib import Path

import pytest
import torch

from image_files import HOLDS, damage, read, write_all
from reducr.data.io.image_pool import ImageFiles, MappedArray
from reducr.data.io.images import ImageDataModule, read_images


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
def test_images_stay_in_order_across_chunks(tmp_path, hold):
    paths, pixels = write_all(tmp_path, num_images=5, size=2)
    many = [paths[place % 5] for place in range(1203)]
    pool, _ = read(many, hold, folder=tmp_path / "cache", image_size=2)
    assert torch.equal(pool[torch.arange(1203)], pixels[torch.arange(1203) % 5])


@pytest.mark.parametrize("hold", ["memory", "disk"])
def test_unreadable_images_are_an_error_that_names_the_first(tmp_path, hold):
    paths, _ = write_all(tmp_path)
    damage(paths)
    with pytest.raises(ValueError, match=re.escape(str(paths[1]))) as caught:
        read(paths, hold, folder=tmp_path / "cache")
    assert str(caught.value) == (
        f"3 of 7 images cannot be read; the first is {paths[1]} (No such file or directory). Get the files again, or "
        "set `datamodule.unreadable=skip`."
    )
    assert not list(tmp_path.glob("cache/*"))
    assert not list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize("hold", ["memory", "disk"])
def test_unreadable_images_can_be_skipped(tmp_path, hold):
    paths, pixels = write_all(tmp_path)
    damaged = damage(paths)
    kept = [place for place in range(7) if place not in damaged]
    for _ in range(2):  # made, then from the cache
        pool, is_readable = read(paths, hold, folder=tmp_path / "cache", unreadable="skip")
        assert torch.nonzero(is_readable).flatten().tolist() == kept
        assert len(pool) == 4
        assert torch.equal(pool[torch.arange(4)], pixels[kept])


def test_a_stream_checks_headers_at_once_and_pixels_when_read(tmp_path):
    paths, pixels = write_all(tmp_path)
    damage(paths)
    with pytest.raises(ValueError, match="2 of 7 images cannot be read"):
        read(paths, "stream")
    pool, is_readable = read(paths, "stream", unreadable="skip")
    assert torch.nonzero(~is_readable).flatten().tolist() == [1, 2]
    assert torch.equal(pool[torch.tensor([0, 1, 4])], pixels[[0, 3, 6]])
    with pytest.raises(ValueError, match=re.escape(f"{paths[5]} cannot be read as an image (")) as caught:
        pool[torch.tensor([0, 3])]
    assert "although its header can" in str(caught.value)
    assert "set `datamodule.unreadable=skip` and `datamodule.cache_dir=DIR`" in str(caught.value)


def test_a_stream_with_a_cache_decodes_all_files_once(tmp_path):
    paths, pixels = write_all(tmp_path / "images")
    damaged = damage(paths)
    kept = [place for place in range(7) if place not in damaged]
    options = {"hold": "stream", "cache_dir": tmp_path / "cache", "image_size": 8}
    with pytest.raises(ValueError, match=f"{len(damaged)} of 7 images cannot be read"):
        read_images(paths, **options)
    pool, is_readable = read_images(paths, **options, unreadable="skip")
    assert torch.nonzero(is_readable).flatten().tolist() == kept
    assert torch.equal(pool[torch.arange(len(kept))], pixels[kept])
    # what is remembered is not looked at again, as long as size and time are the same
    size, time = paths[0].stat().st_size, paths[0].stat().st_mtime_ns
    paths[0].write_bytes(bytes(size))
    os.utime(paths[0], ns=(time, time))
    assert torch.equal(read_images(paths, **options, unreadable="skip")[1], is_readable)
    os.utime(paths[0], ns=(1, 1))
    assert int(read_images(paths, **options, unreadable="skip")[1].sum()) == len(kept) - 1


@pytest.mark.parametrize("hold", HOLDS)
def test_no_readable_image_is_an_error_even_with_skip(tmp_path, hold):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(
        ValueError, match=r"All 2 images cannot be read; .* Is `datamodule\.data_dir` the right folder\?"
    ):
        read(paths, hold, folder=tmp_path / "cache", unreadable="skip")


def test_a_single_unreadable_image_is_an_error(tmp_path):
    paths, _ = write_all(tmp_path)
    paths[3].unlink()
    with pytest.raises(ValueError, match=r"1 of 7 images cannot be read; the first is .*3\.png \(.*\)\. Get the files"):
        read(paths)


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "datamodule.image_size must be a whole number of at least 1; got 0."),
        ({"image_size": 8.0}, "datamodule.image_size must be a whole number of at least 1; got 8.0."),
        ({"resize": 7}, "datamodule.resize must be null or a whole number of at least datamodule.image_size=8; got 7."),
        ({"hold": "ram"}, "unknown datamodule.hold 'ram'."),
        ({"hold": "dsk"}, "unknown datamodule.hold 'dsk'. Did you mean 'disk'? There are: disk, memory, stream."),
        ({"unreadable": "skp"}, "unknown datamodule.unreadable 'skp'. Did you mean 'skip'? There are: error, skip."),
        ({"hold": "disk"}, "`datamodule.hold=disk` needs `datamodule.cache_dir=DIR`"),
        ({"cache_dir": Path("c")}, "`datamodule.cache_dir=c` has no effect with `datamodule.hold=memory`"),
    ],
)
def test_options_out_of_range_are_errors(options, message):
    options = {"image_size": 8, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        read_images([Path("a.png")], **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        Listed([], **options)


def test_an_empty_list_of_files_is_an_error():
    with pytest.raises(ValueError, match=r"The list of image files is empty\."):
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


def test_a_data_module_keeps_targets_aligned_with_images(tmp_path):
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
def test_a_data_module_skips_unreadable_images_in_every_part(tmp_path, hold):
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
        f"Skipped 2 of 9 images that cannot be read; the first is {paths[1]}.",
    )
