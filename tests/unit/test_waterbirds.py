import csv
import gzip
import os
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from reducr.data.published.waterbirds import Waterbirds

DATA_DIR = os.environ.get("REDUCR_DATA_DIR")
COLUMNS = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
# y, split and place
ROWS = [
    (1, 2, 1),
    (0, 0, 0),
    (0, 0, 1),
    (1, 0, 0),
    (1, 0, 1),
    (0, 1, 0),
    (0, 1, 1),
    (1, 1, 0),
    (1, 1, 1),
    (0, 2, 0),
]


def write_table(path, rows, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_release(folder, table="metadata.csv", rows=ROWS):
    """Images of 6 x 4, the row's number in their pixels, in folders of species."""
    named = []
    for number, (target, split, place) in enumerate(rows):
        name = f"{number % 2 + 1:03}.Species_{number % 2}/Species_{number:04}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(folder / name)
        named.append((number, name, target, split, place, "/f/forest/1.jpg"))
    return write_table(folder / table, named)


def read(folder, **options):
    options = {"image_size": 4, "resize": None, **options}
    return Waterbirds(data_dir=folder, **options).read()


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.csv.gz"])
@pytest.mark.parametrize("place", [".", "waterbird_complete95_forest2water2"])
def test_table_and_images_are_found(tmp_path, table, place):
    write_release(tmp_path / place, table)
    raw = read(tmp_path)
    assert raw.class_names == ("landbird", "waterbird")
    assert raw.target.tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert raw.group.tolist() == [3, 0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert raw.num_groups == 4
    assert raw.group_names == ("y=0, place=0", "y=0, place=1", "y=1, place=0", "y=1, place=1")
    assert {part: places.tolist() for part, places in raw.parts.items()} == {
        "train": [1, 2, 3, 4],
        "holdout": [5, 6, 7, 8],
        "test": [0, 9],
    }
    assert raw.input[:, 0, 0, 0].tolist() == list(range(10))
    assert raw.notes == ("Groups: 0 is y=0, place=0; 1 is y=0, place=1; 2 is y=1, place=0; 3 is y=1, place=1.",)


def test_the_splits_have_groups_beside_targets(tmp_path):
    write_release(tmp_path)
    splits = Waterbirds(data_dir=str(tmp_path), image_size=4, resize=None, hold="stream").splits(seed=3)
    assert (splits.train.num_classes, splits.train.num_groups) == (2, 4)
    assert splits.train.group.tolist() == [0, 1, 2, 3]
    assert splits.train.target.tolist() == [0, 0, 1, 1]
    assert splits.train.input[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert splits.holdout.group.tolist() == [0, 1, 2, 3]
    assert splits.notes[0].startswith("Groups: 0 is y=0, place=0;")


def test_images_are_resized_to_256_and_cut_to_224_by_default(tmp_path):
    module = Waterbirds(data_dir=tmp_path)
    assert (module.image_size, module.resize) == (224, 256)
    write_release(tmp_path, rows=ROWS[:2])
    assert module.read().input.shape == (2, 3, 224, 224)


CELEBA = ["image_id", "Male", "Blond_Hair", "Age", "partition"]


def write_celeba(folder, rows):
    for name in {row[0] for row in rows}:
        Image.new("L", (4, 4)).save(folder / name)
    write_table(folder / "metadata.csv", rows, CELEBA)
    return {
        "target_column": "Blond_Hair",
        "group_columns": ["Blond_Hair", "Male", "Age"],
        "filename_column": "image_id",
        "split_column": "partition",
    }


def test_other_tables_of_the_kind_are_read_by_naming_their_columns(tmp_path):
    rows = [
        ("1.png", -1, 1, "old", 0),
        ("2.png", 1, -1, "young", 0),
        ("1.png", 1, -1, "old", 1),
        ("2.png", -1, -1, "young", 2),
        ("1.png", -1, 1, "old", 2),
    ]
    options = write_celeba(tmp_path, rows)
    options["overlap"] = "allow"
    raw = read(tmp_path, **options, class_names=None)
    assert raw.class_names == ("-1", "1")
    assert raw.target.tolist() == [1, 0, 0, 0, 1]
    # of the eight combinations four occur: (-1, -1, young), (-1, 1, old), (-1, 1, young), (1, -1, old)
    assert raw.num_groups == 4
    assert raw.group.tolist() == [3, 2, 1, 0, 3]
    assert raw.notes[0].endswith("; 3 is Blond_Hair=1, Male=-1, Age=old.")
    assert read(tmp_path, **options, class_names=["dark", "blond"]).class_names == ("dark", "blond")


def test_an_image_in_two_parts_is_refused_or_left_out(tmp_path):
    path = write_release(tmp_path)
    _, *rows = csv.reader(path.read_text().splitlines())
    # a training image that tests too, and a holdout image that does
    write_table(path, [*rows, *([*row[:3], "2", *row[4:]] for row in (rows[3], rows[6]))])
    with pytest.raises(
        ValueError,
        match=r"^1 of \d+ images of the training part have the same input as a holdout or test .*Species_0003",
    ):
        read(tmp_path)
    raw = read(tmp_path, overlap="drop")
    assert {part: len(places) for part, places in raw.parts.items()} == {"train": 3, "holdout": 3, "test": 4}
    assert raw.group.tolist() == [3, 0, 1, 3, 0, 2, 3, 0, 2, 1]
    assert len(raw.notes) == 3


def test_a_part_without_rows_is_drawn(tmp_path):
    write_release(tmp_path, rows=[(target, 0, place) for target in (0, 1) for place in (0, 1) for _ in range(10)])
    module = Waterbirds(data_dir=tmp_path, image_size=4, resize=None, holdout_size=10, test_size=8)
    splits = module.splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [22, 10, 8]


def test_unreadable_images_are_left_out_with_their_groups(tmp_path):
    write_release(tmp_path)
    (tmp_path / "001.Species_0" / "Species_0002.png").unlink()
    raw = read(tmp_path, unreadable="skip")
    assert raw.group.tolist() == [3, 0, 2, 3, 0, 1, 2, 3, 0]
    assert raw.parts["train"].tolist() == [1, 2, 3]
    assert raw.notes[1].startswith("Skipped 1 of 10 images")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_column": "z"}, "has no column 'z' (`datamodule.target_column`); it has 'img_id', 'img_file"),
        ({"group_columns": ["y", "here"]}, "has no column 'here' (`datamodule.group_columns`)"),
        ({"filename_column": "file"}, "has no column 'file' (`datamodule.filename_column`)"),
        ({"split_column": "part"}, "has no column 'part' (`datamodule.split_column`)"),
        (
            {"class_names": ["a", "b", "c"]},
            "`datamodule.class_names` must name the 2 values of column 'y' (0, 1), or be null",
        ),
        (
            {"group_columns": "place"},
            "group_columns` must be a list of columns, such as [y, place]; got 'place'.",
        ),
        ({"group_columns": []}, "`datamodule.group_columns` must be a list of columns, such as [y, place]; got []."),
        ({"data_dir": None}, "Waterbirds needs `datamodule.data_dir=DIR`"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(tmp_path, options, message):
    write_release(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(options.pop("data_dir", tmp_path), **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, 3, 0), (1, 0, 1), (0, -1, 0)],
            "line 2: column 'split' must be 0 (train), 1 (holdout), 2 (test) (2 such",
        ),
        ([(0, 0, 0), (1, "train", 1)], "line 2: column 'split' must be 0 (train), 1 (holdout), 2 (test) (2"),
        ([(0, 0, 0), (1, 0, "")], "line 3: column 'place' is empty (1 such in all)."),
        ([(0, 0, 0), ("", 0, 1)], "line 3: column 'y' is empty (1 such in all)."),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path, rows, message):
    path = write_release(tmp_path, rows=rows)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 nothing"])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "metadata.csv.gz"
    path.write_bytes(content if content else gzip.compress(b""))
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged or not a table (")):
        read(tmp_path)


def test_the_error_for_a_missing_table_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path)
    folders = f"{tmp_path} or {tmp_path / 'waterbird_complete95_forest2water2'}"
    assert f"There is no metadata.csv (or .gz) in {folders}." in str(caught.value)
    assert "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz" in str(caught.value)
    assert "datamodule.download=true" in str(caught.value)


def test_an_archive_that_lies_there_is_unpacked(tmp_path):
    name = "waterbird_complete95_forest2water2"
    write_release(tmp_path / "release" / name)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / f"{name}.tar.gz", "w:gz") as file:
        file.add(tmp_path / "release" / name, arcname=name)
    assert read(tmp_path / "data", download=True).group.tolist() == [3, 0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.skipif(DATA_DIR is None, reason="REDUCR_DATA_DIR is not set: no folder with the real files")
def test_the_real_table_has_the_published_groups(tmp_path):
    (tmp_path / "metadata.csv.gz").symlink_to(Path(DATA_DIR) / "waterbirds" / "metadata.csv.gz")
    with gzip.open(tmp_path / "metadata.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    # one image for each (y, place), under the real names of all that have it
    for number, (target, place) in enumerate([("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]):
        image = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 2), (10 * number, 0, 0)).save(image)
        for row in rows:
            if (row["y"], row["place"]) == (target, place):
                path = tmp_path / row["img_filename"]
                path.parent.mkdir(exist_ok=True)
                path.hardlink_to(image)
    splits = Waterbirds(data_dir=tmp_path, image_size=2, resize=None, hold="stream").splits(seed=0)
    counts = {name: torch.bincount(part.group, minlength=4).tolist() for name, part in splits.by_name().items()}
    assert counts == {"train": [3525, 186, 54, 1030], "holdout": [452, 452, 147, 148], "test": [2255, 2255, 642, 642]}
    for part in splits.by_name().values():
        batch = part.batch(torch.arange(0, len(part), 97))
        assert torch.equal(batch.input[:, 0, 0, 0], (10 * batch.group).to(torch.uint8))
        assert torch.equal(batch.target, batch.group // 2)
