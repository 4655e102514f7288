"""The conversion of this repository's WebP sheets to the published batches of CIFAR-10."""

import pickle
import re

import numpy as np
import pytest
import torch
from benchmarks.cifar_sheets import convert, data_dir_for, main
from PIL import Image

from cifar_data import HUMAN_10, LABELS, NAMES, PIXELS, write, write_human, write_pickles, write_sheets
from reducr.data.published.cifar import CIFAR10


@pytest.mark.parametrize("place", ["cifar10", "."])
def test_converted_sheets_are_the_published_batches(tmp_path, place):
    write_sheets(tmp_path / "sheets" / place)
    write_pickles(tmp_path / "published")
    folder = convert(tmp_path / "sheets", tmp_path / "out" / "converted") / "cifar-10-batches-py"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "published").iterdir())
    for name in names:
        converted, published = (
            pickle.loads((parent / name).read_bytes(), encoding="latin1") for parent in (folder, tmp_path / "published")
        )
        assert list(converted) == list(published)
        pixels, expected = (contents.pop("data", None) for contents in (converted, published))
        assert converted == published
        assert np.array_equal(pixels, expected)
    raw = CIFAR10(data_dir=tmp_path / "out" / "converted").read()
    assert np.array_equal(raw.input.numpy(), PIXELS)
    assert raw.target.tolist() == LABELS
    assert raw.class_names == NAMES


def test_the_command_converts_images_and_human_labels(tmp_path, capsys):
    write_sheets(tmp_path / "data" / "cifar10")
    write_human(tmp_path / "data" / "cifar_n" / "CIFAR-10_human.pt", HUMAN_10)
    main([str(tmp_path / "data" / "cifar10"), str(tmp_path / "out")])
    assert f"Read it with `datamodule.data_dir={tmp_path / 'out'}`." in capsys.readouterr().out
    raw = CIFAR10(data_dir=tmp_path / "out", labels="worse").read()
    assert torch.equal(raw.noisy_target[:100], torch.tensor(HUMAN_10["worse_label"]))


def test_benchmarks_convert_sheets_once_and_leave_published_files_alone(tmp_path):
    write_sheets(tmp_path / "cifar10")
    assert data_dir_for("fashion_mnist", tmp_path) == tmp_path
    converted = data_dir_for("cifar10n_worse", tmp_path)
    assert converted != tmp_path
    assert np.array_equal(CIFAR10(data_dir=converted).read().input.numpy(), PIXELS)
    assert data_dir_for("cifar10_resnet18_uniform", tmp_path) is converted
    write_pickles(tmp_path / "published" / "cifar-10-batches-py")
    write_sheets(tmp_path / "published" / "cifar10")
    assert data_dir_for("cifar10n_worse", tmp_path / "published") == tmp_path / "published"
    assert data_dir_for("cifar10n_worse", tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize("damage", ["cut", "empty", "html"])
@pytest.mark.parametrize("name", ["data_batch_4.webp", "labels.npz"])
def test_a_damaged_file_is_named(tmp_path, capsys, name, damage):
    write_sheets(tmp_path)
    content = (tmp_path / name).read_bytes()
    content = {"cut": content[: 2 * len(content) // 3], "empty": b"", "html": b"<html>not found</html>"}[damage]
    write(tmp_path / name, content)
    message = rf"{re.escape(str(tmp_path / name))} is damaged or not what its name says \(.+\)\. Get the file again\."
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "out")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_sheets_and_labels_of_different_numbers_are_refused(tmp_path):
    write_sheets(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "test_batch.webp", lossless=True)
    with pytest.raises(ValueError, match=r"labels\.npz has 120 labels for 104 images\. Get the files again\."):
        convert(tmp_path, tmp_path / "out")


def test_missing_sheets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} lacks data_batch_1\.webp, .*, labels\.npz\. Point FROM"):
        convert(tmp_path, tmp_path / "out")
    write_sheets(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_2.webp").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path / 'cifar10'} lacks data_batch_2\.webp\. Point FROM"):
        convert(tmp_path, tmp_path / "out")
