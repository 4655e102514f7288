import gzip
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from reducr.data.own.features import Features
from reducr.data.own.table import Table
from reducr.data.own.table_files import TextFormat, read_table

DATA_DIR = os.environ.get("REDUCR_DATA_DIR")
needs_data = pytest.mark.skipif(DATA_DIR is None, reason="set REDUCR_DATA_DIR to the folder with the real files")
TEXTS = [("a red bird", "yes"), ("two dogs", "no"), ("an old house", "yes"), ("NA", "no"), ('a "b", c', "yes")]


def write(path, header, rows, *, separator=","):
    """A file of cells as they are, or quoted where one holds the comma."""
    quoted = [
        [
            '"' + str(cell).replace('"', '""') + '"' if separator == "," and "," in str(cell) else str(cell)
            for cell in row
        ]
        for row in (header, *rows)
    ]
    content = "".join(separator.join(row) + "\n" for row in quoted).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def texts_file(path, rows=TEXTS, **options):
    return write(path, ["text", "label"], rows, **options)


def table(train_file, **options):
    options = {"target_column": "label", "text_columns": "text"} | options
    return Table(train_file=train_file, **{option: value for option, value in options.items() if value is not None})


def of_labels(tmp_path, labels, **options):
    """What is read of one different text for each label."""
    path = texts_file(tmp_path / "labels.csv", [(f"text {number}", label) for number, label in enumerate(labels)])
    return table(path, **options).read()


def fails(data, message, error=ValueError):
    with pytest.raises(error) as caught:
        data.read()
    assert str(caught.value) == message


def refused(message, train_file, error=ValueError, **options):
    with pytest.raises(error) as caught:
        table(train_file, **options)
    assert str(caught.value) == message


def in_parts(splits):
    return splits.train, splits.holdout, splits.test


# files


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_cells_are_what_the_file_holds(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pd.DataFrame(TEXTS, columns=["text", "label"]).to_parquet(path)
    else:
        texts_file(path)
    raw = table(path).read()
    assert raw.input.first == [text for text, _ in TEXTS]
    assert raw.input.second is None
    assert raw.class_names == ("no", "yes")
    assert raw.target.tolist() == [1, 0, 1, 0, 1]
    assert dict(raw.parts) == {}
    assert raw.group is None
    assert raw.has_clean_targets is False
    assert raw.notes == ()


@pytest.mark.parametrize("name", ["rows.tsv", "rows.tsv.gz"])
def test_without_quoting_a_quote_is_a_character(tmp_path, name):
    rows = [('"a', "yes"), ('say "b"', "no"), ("c, d", "yes"), ("e", "no")]
    raw = table(texts_file(tmp_path / name, rows, separator="\t"), quoting=False).read()
    assert raw.input.first == [text for text, _ in rows]


def test_another_delimiter(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [("a, b", "x"), ("c", "y"), ("d", "x"), ("e", "y")], separator=";")
    assert table(path, delimiter=";").read().input.first == ["a, b", "c", "d", "e"]


def test_given_files_are_the_parts_and_several_make_one(tmp_path):
    texts_file(tmp_path / "one.csv", TEXTS[:2])
    texts_file(tmp_path / "two.tsv", TEXTS[2:4], separator="\t")
    texts_file(tmp_path / "val.csv", [("v", "no"), ("w", "yes")])
    texts_file(tmp_path / "test.csv", [("t", "yes"), ("s", "no"), ("u", "no")])
    data = table(["one.csv", "two.tsv"], data_dir=tmp_path, holdout_file="val.csv", test_file=["test.csv"])
    raw = data.read()
    assert raw.input.first == ["a red bird", "two dogs", "an old house", "NA", "v", "w", "t", "s", "u"]
    assert {part: positions.tolist() for part, positions in raw.parts.items()} == {"holdout": [4, 5], "test": [6, 7, 8]}
    splits = data.splits(seed=3)
    assert [part.source.tolist() for part in in_parts(splits)] == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    assert [part.target.tolist() for part in in_parts(splits)] == [[1, 0, 1, 0], [0, 1], [1, 0, 0]]


def test_names_of_files_begin_in_the_current_folder(tmp_path, monkeypatch):
    texts_file(tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    assert len(table("rows.csv").read().input) == 5
    assert len(table(str(tmp_path / "rows.csv"), data_dir="elsewhere").read().input) == 5


# texts


def test_the_first_text_is_one_and_all_others_are_the_second(tmp_path):
    rows = [(f"a{row}", f"b{row}", f"c {row}", "xy"[row % 2]) for row in range(4)]
    path = write(tmp_path / "rows.csv", ["one", "two", "three", "label"], rows)
    raw = table(path, text_columns=["three", "one"]).read()
    assert (raw.input.first[1], raw.input.second[1]) == ("c 1", "a1")
    raw = table(path, text_columns=["one", "two", "three"]).read()
    assert (raw.input.first[1], raw.input.second[1]) == ("a1", "b1 c 1")


def test_texts_become_tokens(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [(f"bird {row} on the house", "xy"[row % 2]) for row in range(40)])
    splits = table(path, num_tokens=40, max_length=8).splits(seed=0)
    assert splits.train.input.dtype == torch.int32
    assert splits.train.input.shape[:2] == (29, 2)
    assert splits.facts == {"num_tokens": 40, "max_length": splits.train.input.shape[2], "has_pairs": 0}
    assert splits.facts["max_length"] <= 8


def test_tokens_are_kept_in_the_folder_that_is_given(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [(f"bird {row}", "xy"[row % 2]) for row in range(40)])
    first = table(path, cache_dir=str(tmp_path / "cache")).splits(seed=0)
    assert len(list((tmp_path / "cache").glob("tokens_*.npy"))) == 1
    assert torch.equal(table(path, cache_dir=str(tmp_path / "cache")).splits(seed=0).train.input, first.train.input)


def test_empty_texts_are_an_error_or_left_out(tmp_path):
    rows = [("a", "b", "x"), ("", "b", "y"), ("c", " ", "x"), ("d", "e", "y"), ("f", "g", "x"), ("h", "i", "y")]
    path = write(tmp_path / "rows.csv", ["one", "two", "label"], rows)
    fails(
        table(path, text_columns=["one", "two"]),
        "2 rows without text; the first is row 2 of rows.csv. Fill them in, or skip them with "
        "`datamodule.empty_texts=skip`.",
    )
    raw = table(path, text_columns=["one", "two"], empty_texts="skip").read()
    assert (raw.input.first, raw.input.second) == (["a", "d", "f", "h"], ["b", "e", "g", "i"])
    assert raw.target.tolist() == [0, 1, 0, 1]
    assert raw.notes == ("Skipped 2 of 6 rows without text; the first is row 2 of rows.csv.",)


@pytest.mark.parametrize("folder", ["c=d", "caf\udce9", "x\n$y#"])
@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.parquet"])
def test_a_folder_may_have_any_name(tmp_path, folder, name):
    """pyarrow takes no names that are not UTF-8."""
    place = tmp_path / folder
    place.mkdir()
    if name.endswith("parquet"):
        with (place / name).open("wb") as file:
            pd.DataFrame({"text": list("abcd"), "label": [0, 1, 0, 1], "a": [1, 2, 3, 4]}).to_parquet(file)
    else:
        write(place / name, ["text", "label", "a"], [("a", 0, 1), ("b", 1, 2), ("c", 0, 3), ("d", 1, 4)])
    data = table(place / name)
    assert len(data.rows()) == 4
    facts = data.write_parts({"train": torch.tensor([1, 2])}, place, is_linked=False)
    assert facts["train_file"] == [f"train.{name.partition('.')[2]}"]
    written = read_table(place / facts["train_file"][0], TextFormat())
    assert list(written.columns) == ["text", "label", "a"]
    assert [int(cell) for cell in written["a"]] == [2, 3]


def test_a_text_that_a_parquet_file_lacks_is_empty(tmp_path):
    frame = pd.DataFrame({"text": ["a", None, "b", "c", "d"], "label": [1, 1, 0, 0, 1]})
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"1 row without text; the first is row 2 of rows\.parquet\."):
        table(tmp_path / "rows.parquet").read()


def test_rows_are_counted_in_the_file_they_are_of(tmp_path):
    texts_file(tmp_path / "train.csv")
    texts_file(tmp_path / "test.csv", [("a", "no"), ("b", "no"), ("", "no"), ("", "yes")])
    with pytest.raises(ValueError, match=r"^2 rows without text; the first is row 3 of test\.csv\."):
        table("train.csv", data_dir=tmp_path, test_file="test.csv").read()


# features


def test_all_other_columns_are_features(tmp_path):
    rows = [(row, row / 2, "uv"[row % 2], f"g{row % 2}", "xy"[row % 2]) for row in range(6)]
    path = write(tmp_path / "rows.csv", ["id", "size", "kind", "area", "label"], rows)
    raw = table(path, text_columns=None, group_column="area", index_column="id").read()
    assert isinstance(raw.input, Features)
    assert raw.input.numbers.tolist() == [[row / 2] for row in range(6)]
    assert raw.input.categories.tolist() == [[row % 2] for row in range(6)]
    raw = table(path, text_columns=None, feature_columns=["kind"]).read()
    assert (raw.input.numbers.shape, raw.input.categories.shape) == ((6, 0), (6, 1))


def test_features_are_standardised_by_the_training_examples_alone(tmp_path):
    header = ["size", "kind", "label"]
    write(tmp_path / "train.csv", header, [(1, "u", "x"), (3, "v", "y"), ("", "u", "x"), ("NA", "v", "y")])
    write(tmp_path / "val.csv", header, [(5, "w", "x"), ("", "u", "y")])
    write(tmp_path / "test.csv", header, [(100, "v", "x"), (2, "", "y")])
    splits = table(
        "train.csv", data_dir=tmp_path, holdout_file="val.csv", test_file="test.csv", text_columns=None, overlap="allow"
    ).splits(seed=0)
    # mean 2, deviation 1; then whether the number is missing, then u and v
    assert torch.cat([part.input for part in in_parts(splits)]).tolist() == [
        [-1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1],
        [3, 0, 0, 0], [0, 1, 1, 0],
        [98, 0, 0, 1], [0, 0, 0, 0],
    ]  # fmt: skip
    assert splits.train.input.dtype == torch.float32
    assert dict(splits.facts) == {}


def test_scikit_learn_s_table_as_features(tmp_path):
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    data.frame.to_csv(tmp_path / "cancer.csv", index=False)
    module = table(tmp_path / "cancer.csv", target_column="target", text_columns=None, class_names=["bad", "benign"])
    raw = module.read()
    assert raw.input.numbers.shape == (569, 30)
    assert torch.bincount(raw.target).tolist() == [212, 357]
    assert raw.class_names == ("bad", "benign")
    splits = module.splits(seed=0)
    assert [len(part) for part in in_parts(splits)] == [409, 46, 114]
    train = splits.train.input
    assert train.shape == (409, 30)
    torch.testing.assert_close(train.mean(dim=0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(dim=0, correction=0), torch.ones(30), atol=1e-5, rtol=0)


# images


def images(folder, sizes):
    """Images of a brightness that is their number times ten, and rows with their names."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, side in enumerate(sizes):
        Image.new("RGB", side, (number * 10,) * 3).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "xy"[number % 2]))
    return rows


def test_images_are_files_in_the_folder_of_the_table_or_another(tmp_path):
    rows = images(tmp_path / "pictures", [(4, 4), (6, 5), (4, 8), (3, 3)])
    write(tmp_path / "pictures" / "rows.csv", ["file", "label"], rows)
    write(tmp_path / "rows.csv", ["file", "label"], rows)
    beside = table("pictures/rows.csv", data_dir=tmp_path, text_columns=None, image_column="file", image_size=4)
    named = table(
        tmp_path / "rows.csv",
        text_columns=None,
        image_column="file",
        image_dir=tmp_path / "pictures",
        image_size=4,
        resize=5,
    )
    for data in (beside, named):
        raw = data.read()
        assert (raw.input.dtype, raw.input.shape) == (torch.uint8, (4, 3, 4, 4))
        assert raw.input[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
        assert raw.target.tolist() == [0, 1, 0, 1]
    # 32 pixels, and from [0, 255] to [-1, 1]
    data = table(tmp_path / "pictures" / "rows.csv", text_columns=None, image_column="file")
    raw = data.read()
    assert raw.input.shape == (4, 3, 32, 32)
    assert data.preprocess(raw.input[:1]).unique().tolist() == [-1]


def test_decoded_images_are_kept_on_disk(tmp_path):
    write(tmp_path / "rows.csv", ["file", "label"], images(tmp_path, [(4, 4)] * 4))
    options = {"hold": "disk", "cache_dir": str(tmp_path / "cache"), "image_size": 4}
    raw = table(tmp_path / "rows.csv", text_columns=None, image_column="file", **options).read()
    assert raw.input[torch.arange(4)][:, 1, 2, 3].tolist() == [0, 10, 20, 30]
    assert any((tmp_path / "cache").iterdir())


def test_images_that_cannot_be_read_are_an_error_or_left_out(tmp_path):
    rows = images(tmp_path, [(4, 4)] * 7)
    (tmp_path / "1.png").write_text("none")
    (tmp_path / "4.png").unlink()
    write(tmp_path / "rows.csv", ["file", "label"], rows[:5])
    write(tmp_path / "test.csv", ["file", "label"], rows[5:])
    options = {"text_columns": None, "image_column": "file", "image_size": 4, "data_dir": tmp_path}
    with pytest.raises(ValueError, match=r"1\.png"):
        table("rows.csv", test_file="test.csv", **options).read()
    raw = table("rows.csv", test_file="test.csv", unreadable="skip", **options).read()
    assert raw.input[:, 0, 0, 0].tolist() == [0, 20, 30, 50, 60]
    assert raw.target.tolist() == [0, 0, 1, 1, 0]
    assert raw.parts["test"].tolist() == [3, 4]
    assert raw.notes == ("Skipped 2 of 7 rows whose image cannot be read; the first is row 2 of rows.csv.",)


# targets and groups


@pytest.mark.parametrize(
    ("labels", "class_names", "target"),
    [
        (["b", "a", "B", "a", "b", "B"], ("B", "a", "b"), [2, 1, 0, 1, 2, 0]),
        ([10, 9, -1, 9, 10, -1], ("-1", "9", "10"), [2, 1, 0, 1, 2, 0]),
        (["2.0", "1", "2", "1.0"], ("1", "2"), [1, 0, 1, 0]),
        (["True", "False", "True", "False"], ("False", "True"), [1, 0, 1, 0]),
        (["01", "1", "01", "1"], ("01", "1"), [0, 1, 0, 1]),
        (["NA", "none", "NA", "none"], ("NA", "none"), [0, 1, 0, 1]),
    ],
)
def test_classes_are_the_values_in_order(tmp_path, labels, class_names, target):
    raw = of_labels(tmp_path, labels)
    assert raw.class_names == class_names
    assert raw.target.tolist() == target


@pytest.mark.parametrize(
    ("column", "class_names"),
    [
        (pd.array([True, False, True, False]), ("False", "True")),
        (pd.array([10, 2, 10, 2], dtype="Int64"), ("2", "10")),
        ([10.0, 2.0, 10.0, 2.0], ("2", "10")),
        (pd.Categorical(["b", "a", "b", "a"], categories=["b", "a", "c"]), ("a", "b")),
    ],
)
def test_classes_of_typed_columns(tmp_path, column, class_names):
    pd.DataFrame({"text": list("abcd"), "label": column}).to_parquet(tmp_path / "rows.parquet")
    raw = table(tmp_path / "rows.parquet").read()
    assert raw.class_names == class_names
    assert raw.target.tolist() == [1, 0, 1, 0]


def test_class_names_are_given_in_the_order_of_the_classes(tmp_path):
    assert of_labels(tmp_path, [10, 9, 10, 9], class_names=["nine", "ten"]).class_names == ("nine", "ten")
    with pytest.raises(
        ValueError, match=r"^`datamodule\.class_names` must have one name for each of the 2 classes \(9, 10\); got 1\.$"
    ):
        of_labels(tmp_path, [10, 9, 10, 9], class_names=["nine"])


def test_groups_are_a_column(tmp_path):
    rows = [(f"text {row}", "xy"[row % 2], row // 2 % 3) for row in range(60)]
    path = write(tmp_path / "rows.csv", ["text", "label", "area"], rows)
    raw = table(path, group_column="area").read()
    assert raw.group.tolist() == [row // 2 % 3 for row in range(60)]
    assert raw.num_groups == len(raw.group_names) == 3
    splits = table(path, group_column="area", holdout_size=20).splits(seed=0)
    assert torch.equal(splits.train.group, raw.group[splits.train.source])
    assert splits.group_names == raw.group_names
    same = table(path, group_column="label").read()
    assert (same.group, same.num_groups) == (None, None)


# parts


def test_parts_without_a_file_are_drawn_by_seed(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [(f"text {row}", "xxxy"[row % 4]) for row in range(200)])
    data = table(path)
    splits = data.splits(seed=1)
    assert [torch.bincount(part.target).tolist() for part in in_parts(splits)] == [[108, 36], [12, 4], [30, 10]]
    assert sorted(torch.cat([part.source for part in in_parts(splits)]).tolist()) == list(range(200))
    assert torch.equal(table(path).splits(seed=1).test.source, splits.test.source)
    assert not torch.equal(data.splits(seed=2).test.source, splits.test.source)


def test_sizes_of_drawn_parts_can_be_given(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [(f"text {row}", "xxxy"[row % 4]) for row in range(200)])
    splits = table(path, holdout_size=8, test_size=0.5).splits(seed=1)
    assert [len(part) for part in in_parts(splits)] == [92, 8, 100]


def test_a_test_part_is_drawn_from_the_holdout_file(tmp_path):
    texts_file(tmp_path / "train.csv", [(f"text {row}", "xy"[row % 2]) for row in range(50)])
    texts_file(tmp_path / "val.csv", [(f"other {row}", "xy"[row % 2]) for row in range(40)])
    splits = table("train.csv", data_dir=tmp_path, holdout_file="val.csv").splits(seed=0)
    assert [len(part) for part in in_parts(splits)] == [50, 32, 8]
    assert sorted([*splits.holdout.source.tolist(), *splits.test.source.tolist()]) == list(range(50, 90))
    assert splits.train.source.tolist() == list(range(50))


def test_a_holdout_part_is_drawn_from_the_training_file(tmp_path):
    texts_file(tmp_path / "train.csv", [(f"text {row}", "xy"[row % 2]) for row in range(50)])
    texts_file(tmp_path / "test.csv", [(f"other {row}", "xy"[row % 2]) for row in range(10)])
    splits = table("train.csv", data_dir=tmp_path, test_file="test.csv").splits(seed=0)
    assert [len(part) for part in in_parts(splits)] == [45, 5, 10]
    with pytest.raises(ValueError, match=r"test_size=4` has no effect: this data set has a published test part of 10"):
        table("train.csv", data_dir=tmp_path, test_file="test.csv", test_size=4).splits(seed=0)


def test_an_ordinary_table_of_150_classes_and_3000_rows(tmp_path):
    path = texts_file(
        tmp_path / "rows.csv", [(f"order {row}, please", f"intent {row % 150:03}") for row in range(3000)]
    )
    splits = table(path, num_tokens=100, max_length=12).splits(seed=0)
    assert splits.class_names[:2] == ("intent 000", "intent 001")
    assert [len(part) for part in in_parts(splits)] == [2160, 240, 600]
    assert torch.bincount(splits.test.target).tolist() == [4] * 150
    assert {*torch.bincount(splits.holdout.target, minlength=150).tolist()} == {1, 2}


def test_columns_may_be_called_by_numbers(tmp_path):
    rows = [(str(row), "xy"[row % 2], "uv"[row // 2 % 2], f"text {row}") for row in range(20)]
    raw = table(
        write(tmp_path / "rows.csv", ["1", "2", "3", "4"], rows),
        index_column=1, target_column=2, group_column=3, text_columns=[4],
    ).read()  # fmt: skip
    assert raw.class_names == ("x", "y")
    assert raw.group_names == ("u", "v")
    with pytest.raises(ValueError, match="Column '2' is the target and cannot be an input"):
        table(tmp_path / "rows.csv", target_column=2, text_columns=[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"empty_texts": "skip", "text_columns": None},
            "empty_texts=skip` has no effect on inputs of kind 'features'",
        ),
        ({"download": True, "text_columns": None}, "download=true` has no effect without a published `datamodule.tok"),
        ({"download": True}, "download=true` has no effect without a published `datamodule.tokenizer`."),
        ({"delimiter": ";"}, "delimiter` has no effect on parquet files."),
        ({"quoting": False}, "quoting` has no effect on parquet files."),
    ],
)
def test_options_that_change_nothing_are_refused(tmp_path, options, message):
    pd.DataFrame(TEXTS, columns=["text", "label"]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=re.escape(f"`datamodule.{message}")):
        table(tmp_path / "rows.parquet", **options)


def test_rows_in_two_parts_are_an_error_or_dropped_or_allowed(tmp_path):
    texts_file(
        tmp_path / "train.csv",
        [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"), ("b", "y"), ("e", "x"), ("g", "x"), ("h", "y")],
    )
    texts_file(tmp_path / "test.csv", [("b", "y"), ("c", "y"), ("f", "x"), ("e", "x")])
    options = {"data_dir": tmp_path, "test_file": "test.csv"}
    fails(
        table("train.csv", **options),
        "4 of 8 rows of the training part have the same input as a test row; the first is row 2 of train.csv. "
        "Set `datamodule.overlap=drop` to leave them out, or `datamodule.overlap=allow` to keep them if different "
        "examples may have the same input.",
    )
    raw = table("train.csv", **options, overlap="drop").read()
    assert raw.input.first == ["a", "d", "g", "h", "b", "c", "f", "e"]
    assert raw.parts["test"].tolist() == [4, 5, 6, 7]
    assert [note.split(", ")[0] for note in raw.notes] == ["Dropped 4 of 8 rows of the training part"]
    raw = table("train.csv", **options, overlap="allow").read()
    assert len(raw.input) == 12
    assert raw.notes == ()


def test_the_holdout_file_may_share_no_text_with_the_test_file_either(tmp_path):
    for name, texts in (("train", "abcdef"), ("val", "ghi"), ("test", "ijk")):
        texts_file(tmp_path / f"{name}.csv", [(text, "xy"[place % 2]) for place, text in enumerate(texts)])
    options = {"data_dir": tmp_path, "holdout_file": "val.csv", "test_file": "test.csv"}
    message = "1 of 3 rows of the holdout part have the same input as a test row; the first is row 3 of val.csv."
    with pytest.raises(ValueError, match=re.escape(message)):
        table("train.csv", **options).read()
    raw = table("train.csv", **options, overlap="drop").read()
    assert {part: len(places) for part, places in raw.parts.items()} == {"holdout": 2, "test": 3}


def test_a_training_file_that_is_the_test_file_leaves_nothing(tmp_path):
    path = texts_file(tmp_path / "train.csv")
    with pytest.raises(ValueError, match=r"^`datamodule\.overlap=drop` would empty the training part: all \d+ rows"):
        table(path, test_file=path, overlap="drop").read()


def test_rows_with_the_same_text_are_drawn_into_one_part_but_not_those_with_the_same_features(tmp_path):
    path = texts_file(tmp_path / "rows.csv", [(f"text {row % 190}", "xy"[row % 2]) for row in range(200)])
    splits = table(path).splits(seed=0)
    texts = [{tuple(tokens.flatten().tolist()) for tokens in part.input} for part in in_parts(splits)]
    assert [len(part) for part in in_parts(splits)] == [144, 16, 40]
    assert sum(map(len, texts)) == 190
    assert table(path, text_columns=None).read().content is None


def test_the_same_image_under_two_names_is_one_input(tmp_path):
    for name, brightness in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("f", 5), ("e", 1)):
        Image.new("L", (4, 4), brightness).save(tmp_path / f"{name}.png")
    for part, images in (("train", "abcdf"), ("test", "e")):
        write(tmp_path / f"{part}.csv", ["file", "label"], [(f"{name}.png", "xy"[ord(name) % 2]) for name in images])
    options = {"text_columns": None, "image_column": "file", "test_file": "test.csv", "data_dir": tmp_path}
    with pytest.raises(
        ValueError, match=r"^1 of \d+ rows of the training part have the same input as a test .* row 1 of train\.csv"
    ):
        table("train.csv", **options).read()
    assert len(table("train.csv", **options, overlap="drop").read().input) == 5


# faults


def test_what_is_needed(tmp_path):
    message = (
        "A table needs `datamodule.train_file=FILE` (.csv, .tsv or .parquet) and `datamodule.target_column=NAME`, the "
        "column of the classes."
    )
    for options in ({"train_file": None, "target_column": "label"}, {"train_file": "rows.csv", "target_column": None}):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Table(**options)


@pytest.mark.parametrize("option", ["target_column", "group_column", "index_column", "text_columns", "feature_columns"])
def test_a_missing_column_is_answered_with_the_nearest(tmp_path, option):
    texts = None if option == "feature_columns" else "text"
    data = table(texts_file(tmp_path / "rows.csv"), **({"text_columns": texts} | {option: "lable"}))
    fails(data, "unknown column 'lable' of rows.csv. Did you mean 'label'? There are: label, text.")


def test_a_column_that_the_second_file_lacks(tmp_path):
    texts_file(tmp_path / "rows.csv")
    write(tmp_path / "test.csv", ["text", "class"], [("t", "yes")])
    with pytest.raises(ValueError, match=r"^unknown column 'label' of test\.csv\.(.*) There are: class, text\.$"):
        table("rows.csv", data_dir=tmp_path, test_file="test.csv").read()


def test_a_missing_file(tmp_path):
    path = texts_file(tmp_path / "rows.csv")
    for part in ("holdout", "test"):
        message = f"There is no file {tmp_path / 'no.csv'}. Check `datamodule.{part}_file` and `data_dir`."
        refused(message, path, FileNotFoundError, data_dir=tmp_path, **{f"{part}_file": "no.csv"})
    refused("`datamodule.train_file` must name at least one file; got none.", [])


@pytest.mark.parametrize("name", ["rows.json", "rows", "rows.parquet.gz", "rows.xlsx"])
def test_an_unknown_kind_of_file(tmp_path, name):
    path = texts_file(tmp_path / name)
    with pytest.raises(
        ValueError,
        match=rf"unknown file format '.*' of `datamodule\.train_file={re.escape(str(path))}`\..* "
        r"There are: \.csv, \.csv\.gz, \.parquet, \.tsv, \.tsv\.gz\.$",
    ):
        table(path)


def test_faults_of_options(tmp_path):
    path = texts_file(tmp_path / "rows.csv")
    refused(
        "Set only one of `datamodule.text_columns`, `feature_columns` and `image_column`; got text and image columns.",
        path,
        image_column="file",
    )
    refused(
        "Column 'label' is the target and cannot be an input. Leave it out there.",
        path,
        text_columns=["text", "label"],
    )
    refused("`datamodule.delimiter` must be one character; got ';;'.", path, delimiter=";;")
    refused("`datamodule.image_dir=x` has no effect without `datamodule.image_column`.", path, image_dir="x")
    refused(
        "unknown datamodule.empty_texts 'skipp'. Did you mean 'skip'? There are: error, skip.",
        path,
        empty_texts="skipp",
    )
    refused(
        "unknown datamodule.overlap 'dropp'. Did you mean 'drop'? There are: allow, drop, error.", path, overlap="dropp"
    )


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("num_tokens", 100, "features"),
        ("max_length", 9, "image"),
        ("tokenizer", "own", "features"),
        ("image_size", 8, "text"),
        ("resize", 8, "features"),
        ("hold", "disk", "text"),
        ("unreadable", "skip", "text"),
        ("cache_dir", "here", "features"),
    ],
)
def test_an_option_for_another_kind_of_input(tmp_path, option, value, kind):
    inputs = {"features": {}, "text": {"text_columns": "text"}, "image": {"image_column": "text"}}[kind]
    refused(
        f"`datamodule.{option}={value}` has no effect on inputs of kind {kind!r}. Leave it out.",
        texts_file(tmp_path / "rows.csv"),
        **({"text_columns": None} | inputs | {option: value}),
    )


def test_a_target_that_is_missing(tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole text is below)
        of_labels(tmp_path, ["a", "", "b", "", "a", "b"])
    assert str(caught.value) == (
        "Column 'label' (`datamodule.target_column`) has no value in 2 rows; the first is row 2 of labels.csv. Fill "
        "them in or remove these rows."
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["1.5", "2.5", "1.5", "2.5"],
            "is not categorical: it holds numbers that are not whole, such as 1.5. Name a column of classes.",
        ),
        (
            ["a", "b", "c", "a"],
            "is not categorical: it has 3 different values in 4 training rows. Name a column of classes.",
        ),
        (
            ["a", "a", "a"],
            "must have at least two values; all training rows have 'a'.",
        ),
    ],
)
def test_a_target_that_is_none(tmp_path, labels, message):
    with pytest.raises(ValueError, match=rf"^Column 'label' \(`datamodule\.target_column`\) {re.escape(message)}$"):
        of_labels(tmp_path, labels)


def test_a_class_that_training_lacks(tmp_path):
    texts_file(tmp_path / "train.csv")
    texts_file(tmp_path / "test.csv", [("t", "yes"), ("u", "maybe"), ("v", "maybe")])
    fails(
        table("train.csv", data_dir=tmp_path, test_file="test.csv"),
        "Column 'label' (`datamodule.target_column`) has values in 2 rows that no training row has; the first is row "
        "2 of test.csv, with 'maybe'. Training rows have no, yes.",
    )


def test_ids_that_come_twice(tmp_path):
    header = ["id", "text", "label"]
    write(tmp_path / "train.csv", header, [(f"i{row}", f"t{row}", "xy"[row % 2]) for row in (0, 1, 2, 3)])
    write(tmp_path / "test.csv", header, [("j", "u", "x"), ("i2", "v", "y")])
    data = table("train.csv", data_dir=tmp_path, test_file="test.csv", index_column="id")
    message = (
        "Column 'id' (`datamodule.index_column`) must hold unique ids. It repeats ids of {} in 1 row; the first is {}."
    )
    fails(data, message.format("another part", "row 2 of test.csv, with 'i2'"))
    write(
        tmp_path / "train.csv",
        header,
        [(f"i{row}", f"t{number}", "xy"[number % 2]) for number, row in enumerate("0110")],
    )
    message = message.replace("1 row", "2 rows")
    fails(data, message.format("the same part", "row 3 of train.csv, with 'i1'"))


def test_rows_of_other_widths_than_the_header(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,x\nb,y,z\n")
    fails(
        table(path),
        f"Row 2 of {path} has 3 cells; its header has 2: text, label. Check `datamodule.delimiter` and "
        "`datamodule.quoting`.",
    )
    path.write_text("text;label\na, b;x\n")
    with pytest.raises(
        ValueError, match=r"Row 1 of .* has 2 cells; its header has 1: text;label\. Check `datamodule\.delim"
    ):
        table(path).read()
    path.write_text("text;label\na;x\nb;y\n")
    fails(table(path), "unknown column 'label' of rows.csv. Did you mean 'text;label'? There are: text;label.")


def test_faults_of_headers_and_empty_files(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,text\na,x,b\n")
    fails(table(path), f"{path} has two columns 'text'. Rename one.")
    path.write_text("text,label\n")
    fails(table(path), "rows.csv has no rows.")
    path.write_text("")
    fails(table(path), "unknown column 'label' of rows.csv. There are: none.")
    path.write_text("label\nx\ny\n")
    fails(table(path, text_columns=None), "rows.csv has no input column: its only columns are label.")


def test_a_file_that_is_no_parquet(tmp_path):
    path = texts_file(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is damaged or not a parquet file"):
        table(path).read()


# real files


@needs_data
def test_tweets_from_their_files():
    folder = Path(DATA_DIR) / "tweeteval_emoji"
    files = {"holdout_file": "val.tsv.gz", "test_file": "test.tsv.gz"}
    raw = table("train.tsv.gz", data_dir=folder, quoting=False, empty_texts="skip", overlap="allow", **files).read()
    assert {part: len(positions) for part, positions in raw.parts.items()} == {"holdout": 5000, "test": 50_000}
    assert raw.class_names == tuple(map(str, range(20)))
    train = raw.target[: len(raw.target) - 55_000]
    assert torch.bincount(train).tolist() == [
        9204, 4901, 4713, 2043, 2146, 2132, 2078, 2345, 1287, 1391,
        1982, 946, 1246, 980, 1224, 934, 1350, 1397, 1510, 1191,
    ]  # fmt: skip
    dropped = table("train.tsv.gz", data_dir=folder, quoting=False, overlap="drop", **files).read()
    train, holdout, test = (
        raw.input.first[start:stop] for start, stop in ((0, 45_000), (45_000, 50_000), (50_000, None))
    )
    others, tested = {*holdout, *test}, {*test}
    num_train, num_holdout = (
        sum(text not in seen for text in part) for part, seen in ((train, others), (holdout, tested))
    )
    assert len(dropped.parts["holdout"]) == num_holdout
    assert len(dropped.target) == num_train + num_holdout + 50_000


@needs_data
def test_pairs_of_two_sources_joined():
    raw = table(
        ["mnli_subset_train.tsv.gz", "wiki_nli_train.tsv.gz"],
        data_dir=Path(DATA_DIR) / "nli",
        holdout_file="mnli_subset_validation.tsv.gz",
        test_file="wiki_nli_test.tsv.gz",
        text_columns=["premise", "hypothesis"],
        class_names=["entailment", "neutral", "contradiction"],
        quoting=False,
        overlap="allow",
    ).read()
    assert torch.bincount(raw.target[:24_991]).tolist() == [3213 + 4507, 3326 + 5238, 3349 + 5358]
    assert torch.bincount(raw.target[raw.parts["holdout"]]).tolist() == [2183, 1995, 2060]
    assert torch.bincount(raw.target[raw.parts["test"]]).tolist() == [213, 229, 243]
    assert raw.input.first[9888].startswith("The award of the title was followed by")
    assert raw.input.second[9888] == "The award of the title preceded the award of the Golden Medal."
