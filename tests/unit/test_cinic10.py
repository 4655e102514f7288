import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from reducr.data.published import cinic10
from reducr.data.published.cinic10 import CINIC10, CLASS_NAMES

SIZES = {"train": 4, "valid": 3, "test": 2}


def write_release(folder):
    """Some images of each class in each part, under names as in the release; class and number are in the pixels."""
    for part, size in SIZES.items():
        for target, name in enumerate(CLASS_NAMES):
            (folder / part / name).mkdir(parents=True)
            for number in range(size):
                pixels = np.full((32, 32, 3), (10 * target, number, size), dtype=np.uint8)
                origin = f"cifar10-{part}-{number}" if number % 2 else f"n0001_{number}"
                Image.fromarray(pixels).save(folder / part / name / f"{origin}.png")


@pytest.mark.parametrize("place", [".", "CINIC-10"])
def test_the_three_parts_are_found(tmp_path, place):
    write_release(tmp_path / place)
    (tmp_path / place / "README.md").write_text("as in the release")
    raw = CINIC10(data_dir=tmp_path).read()
    assert raw.input.shape == (90, 3, 32, 32)
    assert raw.input.dtype == torch.uint8
    assert raw.class_names == CLASS_NAMES
    assert torch.equal(raw.input[:, 0, 5, 7], 10 * raw.target)
    for part, size in (("train", 4), ("holdout", 3), ("test", 2)):
        assert torch.bincount(raw.target[raw.parts[part]]).tolist() == [size] * 10
        assert set(raw.input[raw.parts[part]][:, 2].flatten().tolist()) == {size}
    assert raw.notes == (
        "The train part has 40 images; the published one has 90000.",
        "The holdout part has 30 images; the published one has 90000.",
        "The test part has 20 images; the published one has 90000.",
    )


def test_the_published_parts_are_the_splits(tmp_path):
    write_release(tmp_path)
    module = CINIC10(data_dir=str(tmp_path), hold="disk", cache_dir=tmp_path / "cache", label_noise={"train": 0.5})
    splits = module.splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [40, 30, 20]
    assert int(splits.train.is_corrupted.sum()) == 20
    assert torch.equal(splits.train.input[:, 0, 0, 0] // 10 != splits.train.target, splits.train.is_corrupted)
    assert torch.equal(splits.holdout.input[:, 0, 0, 0] // 10, splits.holdout.target.to(torch.uint8))


def test_an_archive_that_lies_there_is_unpacked(tmp_path, monkeypatch):
    write_release(tmp_path / "release")
    archive = tmp_path / "data" / "CINIC-10.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        for part in SIZES:
            file.add(tmp_path / "release" / part, arcname=part)
    with pytest.raises(
        ValueError, match=r"is not the expected content of .*its md5 is .*; expected 6ee4d0c996905fe93221de577967a372"
    ):
        CINIC10(data_dir=tmp_path / "data", download=True).read()
    monkeypatch.setattr(cinic10, "_MD5", None)
    raw = CINIC10(data_dir=tmp_path / "data", download=True).read()
    assert [len(raw.parts[part]) for part in ("train", "holdout", "test")] == [40, 30, 20]
    assert (tmp_path / "data" / "CINIC-10" / "valid").is_dir()


def test_a_missing_part_is_named_with_where_it_was_looked_for(tmp_path):
    write_release(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as caught:
        CINIC10(data_dir=tmp_path).read()
    assert f"CINIC-10 has no folder valid in {tmp_path} or {tmp_path / 'CINIC-10'}." in str(caught.value)
    assert "datamodule.data_dir=DIR" in str(caught.value)
    assert "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz" in str(caught.value)
    assert "datamodule.download=true" in str(caught.value)


def test_other_classes_are_refused(tmp_path):
    write_release(tmp_path)
    (tmp_path / "train" / "truck").rename(tmp_path / "train" / "lorry")
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'train'} must contain the folders airplane, automobile,")
    ):
        CINIC10(data_dir=tmp_path).read()


def test_a_class_missing_in_a_part_is_named(tmp_path):
    write_release(tmp_path)
    (tmp_path / "test" / "frog").rename(tmp_path / "frog")
    with pytest.raises(ValueError, match="'frog' is in the train part but not in the test part"):
        CINIC10(data_dir=tmp_path).read()


def test_no_folder_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"CINIC-10 needs `datamodule\.data_dir=DIR`"):
        CINIC10(data_dir=None)
