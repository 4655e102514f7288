import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from reducr.data.own.hugging_face import HuggingFace

datasets = pytest.importorskip("datasets", reason="the extra for Hugging Face data sets is not installed")
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value  # noqa: E402

TEXTS = ["a red bird", "two dogs", "an old house", "NA"]
LABELS = ClassLabel(names=["no", "yes"])


@pytest.fixture(autouse=True)
def _caches_stay_here(tmp_path, monkeypatch):
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "cache" / name)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def saved(path, splits, **features):
    """A folder of ``save_to_disk``: a data set of columns, or several by the names of their splits."""

    def dataset(columns):
        data = Dataset.from_dict(columns)
        return data.cast(Features({**data.features, **features})) if features else data

    is_one = all(isinstance(column, list) for column in splits.values())
    data = dataset(splits) if is_one else DatasetDict({split: dataset(columns) for split, columns in splits.items()})
    data.save_to_disk(path)
    return path


def module(path, **options):
    return HuggingFace(**({"path": path, "input_column": "text", "target_column": "label"} | options))


def of_texts(texts=TEXTS, labels=(1, 0, 1, 0), **columns):
    return {"text": list(texts), "label": list(labels), **columns}


def fails(data, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        data.read()


def refused(message, error=ValueError, **options):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        module(**options)


def test_one_saved_data_set_is_the_training_part(tmp_path):
    raw = module(saved(tmp_path / "data", of_texts(), label=LABELS)).read()
    assert raw.input.first == TEXTS
    assert raw.input.second is None
    assert raw.class_names == ("no", "yes")
    assert raw.target.tolist() == [1, 0, 1, 0]
    assert dict(raw.parts) == {}
    assert raw.group is None
    assert raw.notes == ()


def test_named_splits_are_the_parts(tmp_path):
    splits = {
        "fit": of_texts(), "dev": of_texts(["v", "w"], [0, 1]), "unused": of_texts(["x"], [0]),
        "final": of_texts(["t", "s", "u"], [1, 0, 0]),
    }  # fmt: skip
    path = saved(tmp_path / "data", splits, label=LABELS)
    data = module(path, train_split="fit", holdout_split="dev", test_split="final")
    raw = data.read()
    assert raw.input.first == [*TEXTS, "v", "w", "t", "s", "u"]
    assert {part: positions.tolist() for part, positions in raw.parts.items()} == {"holdout": [4, 5], "test": [6, 7, 8]}
    parts = data.splits(seed=0)
    assert [part.target.tolist() for part in (parts.train, parts.holdout, parts.test)] == [
        [1, 0, 1, 0],
        [0, 1],
        [1, 0, 0],
    ]
    assert parts.train.input.dtype == torch.int32
    assert parts.facts["has_pairs"] == 0


def test_splits_that_are_not_named_are_drawn(tmp_path):
    path = saved(tmp_path / "data", of_texts([f"text {row}" for row in range(100)], [0, 0, 0, 1] * 25))
    parts = module(path).splits(seed=1)
    sizes = [torch.bincount(part.target).tolist() for part in (parts.train, parts.holdout, parts.test)]
    assert sizes == [[54, 18], [6, 2], [15, 5]]
    assert sorted(torch.cat([part.source for part in (parts.train, parts.holdout, parts.test)]).tolist()) == [
        *range(100)
    ]
    assert torch.equal(module(path).splits(seed=1).test.source, parts.test.source)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_with_files(tmp_path, suffix):
    folder = tmp_path / "data"
    folder.mkdir()
    data = Dataset.from_dict(of_texts(["a, b", "c", "d", "e"], ["y", "x", "y", "x"]))
    {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[suffix](folder / f"train.{suffix}")
    test = Dataset.from_dict(of_texts(["t"], ["x"]))
    {"csv": test.to_csv, "jsonl": test.to_json, "parquet": test.to_parquet}[suffix](folder / f"test.{suffix}")
    raw = module(folder, test_split="test").read()
    assert raw.input.first == ["a, b", "c", "d", "e", "t"]
    assert raw.class_names == ("x", "y")
    assert raw.target.tolist() == [1, 0, 1, 0, 0]
    assert raw.parts["test"].tolist() == [4]


def test_a_folder_with_the_name_of_a_reader_is_a_folder(tmp_path, monkeypatch):
    """``load_dataset("pandas")`` reads the pickles of the current folder with some versions."""
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas" / "train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "train.pkl").write_bytes(pickle.dumps({"text": ["c"]}))
    monkeypatch.chdir(tmp_path)
    assert len(module("pandas").rows()) == 2
    monkeypatch.chdir(tmp_path / "pandas")
    with pytest.raises(ValueError, match=r"datamodule\.path=pandas` is the name of a file format"):
        module("pandas", download=True)


def test_a_folder_of_images(tmp_path):
    for number in range(4):
        path = tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("RGB", (4, 4), (number,) * 3).save(path)
    raw = module(tmp_path / "data", input_column="image", image_size=4).read()
    assert raw.class_names == ("a", "b")
    assert {(int(image[0, 0, 0]) % 2, int(target)) for image, target in zip(raw.input, raw.target, strict=True)} == {
        (0, 0),
        (1, 1),
    }


def test_two_columns_of_strings_are_pairs(tmp_path):
    path = saved(tmp_path / "data", of_texts(other=["b1", "b2", "b3", "b4"]))
    raw = module(path, input_column=["other", "text"]).read()
    assert raw.input.first == ["b1", "b2", "b3", "b4"]
    assert raw.input.second == TEXTS


def test_groups_are_a_column_with_names_of_its_own(tmp_path):
    columns = of_texts(area=["n", "n", "s", "s"])
    raw = module(saved(tmp_path / "data", columns, label=LABELS), group_column="area").read()
    assert raw.group.tolist() == [0, 0, 1, 1]
    assert raw.num_groups == 2


def test_images_are_decoded(tmp_path):
    pictures = [Picture.new("RGB", (4 + number, 4), (number * 10,) * 3) for number in range(4)]
    data = Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, Features({"image": Image(), "label": LABELS}))
    data.save_to_disk(tmp_path / "data")
    data = module(tmp_path / "data", input_column="image", image_size=4)
    raw = data.read()
    assert (raw.input.dtype, raw.input.shape) == (torch.uint8, (4, 3, 4, 4))
    assert raw.input[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert data.preprocess(raw.input[:1]).unique().tolist() == [-1]


def test_images_that_cannot_be_read_are_an_error_or_left_out(tmp_path):
    for number in range(6):
        Picture.new("RGB", (4, 4), (number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_text("none")
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    columns = {"image": [*paths[:4], None, paths[5]], "label": [0, 1, 0, 1, 1, 0]}
    Dataset.from_dict(columns, Features({"image": Image(), "label": LABELS})).save_to_disk(tmp_path / "data")
    with pytest.raises(
        ValueError,
        match=r"^2 of 6 images cannot be read; the first is row 2 of split 'train' \(Unidentified.*\. Set "
        r"`datamodule\.unreadable=skip` to skip them if others can be read\.$",
    ):
        module(tmp_path / "data", input_column="image", image_size=4).read()
    raw = module(tmp_path / "data", input_column="image", image_size=4, unreadable="skip").read()
    assert raw.input[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert raw.target.tolist() == [0, 0, 1, 0]
    assert raw.notes == ("Skipped 2 of 6 rows whose image cannot be read; the first is row 2 of split 'train'.",)


@pytest.mark.parametrize(
    "feature", [List(List(Value("float64"))), Array2D((2, 3), "float32"), List(List(Value("int8")))]
)
def test_arrays_of_numbers_are_float32(tmp_path, feature):
    arrays = np.arange(24).reshape(4, 2, 3)
    path = saved(tmp_path / "data", {"x": arrays.tolist(), "label": [1, 0, 1, 0]}, x=feature)
    raw = module(path, input_column="x").read()
    assert raw.input.dtype == torch.float32
    assert raw.input.tolist() == arrays.tolist()


def test_rows_in_two_splits_are_found(tmp_path):
    splits = {"train": of_texts([*TEXTS, "b"], [1, 0, 1, 0, 1]), "test": of_texts(["two dogs", "c"], [0, 1])}
    path = saved(tmp_path / "data", splits)
    with pytest.raises(ValueError, match=r"^1 of 5 rows of the training part .* the first is row 2 of split 'train'\."):
        module(path, test_split="test").read()
    assert len(module(path, test_split="test", overlap="drop").read().target) == 6
    arrays = {"train": {"x": [[1.0], [2.0], [3.0], [4.0], [5.0]], "label": [0, 1, 0, 1, 0]},
              "test": {"x": [[3.0], [6.0]], "label": [0, 0]}}  # fmt: skip
    with pytest.raises(ValueError, match=r"^1 of 5 rows of the training part .* the first is row 3 of split 'train'\."):
        module(saved(tmp_path / "arrays", arrays), input_column="x", test_split="test").read()


# faults


def test_what_is_needed():
    for option in ("path", "input_column", "target_column"):
        refused(
            "A Hugging Face data set needs `datamodule.path=DIR` (or its name on the hub), "
            "`datamodule.input_column=NAME` and `datamodule.target_column=NAME`, the column of the classes.",
            **({"path": "data"} | {option: None}),
        )


def test_no_folder_and_no_download(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^There is no folder .*/none\. Set `datamodule\.path` to .*download=true"
    ):
        module(tmp_path / "none")


def test_faults_of_options(tmp_path):
    path = saved(tmp_path / "data", of_texts())
    needed = "`datamodule.input_column` must name one column, or two columns of texts, other than the target; got "
    refused(needed + "label.", path=path, input_column="label")
    refused(needed + "[].", path=path, input_column=[])
    refused(
        "unknown datamodule.unreadable 'skp'. Did you mean 'skip'? There are: error, skip.", path=path, unreadable="skp"
    )
    fails(
        module(path, name="small"),
        f"`datamodule.name=small` has no effect: {path} holds one data set. Leave it out.",
    )
    fails(
        module(path, image_size=8),
        "`datamodule.image_size=8` has no effect on inputs of kind 'text'. Leave it out.",
    )


def test_missing_columns_and_splits_are_answered_with_the_nearest(tmp_path):
    path = saved(tmp_path / "data", {"train": of_texts(), "test": of_texts(["t"], [1])})
    owner = f"of split 'train' of {path}"
    fails(
        module(path, input_column="txet"),
        f"unknown column 'txet' {owner}. Did you mean 'text'? There are: label, text.",
    )
    fails(
        module(path, target_column="lable"),
        f"unknown column 'lable' {owner}. Did you mean 'label'? There are: label, text.",
    )
    fails(
        module(path, test_split="tset"),
        f"unknown split 'tset' of {path}. Did you mean 'test'? There are: test, train.",
    )


@pytest.mark.parametrize(
    ("input_column", "features"),
    [
        ("number", "'number' holds Value('int64')"),
        (["text", "x"], "'text' holds Value('string'), 'x' holds List(Value('float64'))"),
    ],
)
def test_a_column_of_another_kind(tmp_path, input_column, features):
    path = saved(tmp_path / "data", of_texts(number=[1, 2, 3, 4], x=[[1.0]] * 4))
    fails(
        module(path, input_column=input_column),
        "`datamodule.input_column` must be one column of strings, images or arrays of numbers, or several columns of "
        f"strings; {features}.",
    )


@pytest.mark.parametrize("odd", [[1.0, 2.0, 3.0], None])
def test_arrays_of_different_shapes(tmp_path, odd):
    path = saved(tmp_path / "data", {"x": [[1.0, 2.0], [3.0, 4.0], odd, [5.0, 6.0]], "label": [0, 1, 0, 1]})
    fails(
        module(path, input_column="x"),
        "`datamodule.input_column` must hold arrays of one shape; 1 row with no array or another shape than (2,). The "
        "first is row 3 of split 'train'.",
    )


def test_arrays_with_missing_numbers(tmp_path):
    path = saved(
        tmp_path / "data", {"x": [[1.0, 2.0], [3.0, None], [1.0, float("inf")], [5.0, 6.0]], "label": [0, 1, 0, 1]}
    )
    fails(
        module(path, input_column="x"),
        "`datamodule.input_column` must hold finite numbers; 2 rows with a missing or infinite number. The first is "
        "row 2 of split 'train'.",
    )


def test_a_label_that_is_not_known_is_missing(tmp_path):
    path = saved(tmp_path / "data", of_texts(labels=[1, -1, 0, 0]), label=LABELS)
    with pytest.raises(
        ValueError, match=r"^Column 'label' .* has no value in 1 row; the first is row 2 of split 'train'"
    ):
        module(path).read()


def test_empty_texts_are_an_error_or_left_out(tmp_path):
    path = saved(tmp_path / "data", of_texts(["a", None, "c", "d", "e"], [1, 0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"^1 row without text; the first is row 2 of split 'train'\."):
        module(path).read()
    raw = module(path, empty_texts="skip").read()
    assert raw.input.first == ["a", "c", "d", "e"]
    assert raw.notes == ("Skipped 1 of 5 rows without text; the first is row 2 of split 'train'.",)


def test_other_class_names_in_another_split(tmp_path):
    splits = {
        split: Dataset.from_dict(of_texts(texts), Features({"text": Value("string"), "label": ClassLabel(names=names)}))
        for split, texts, names in (("train", "abcd", ["no", "yes"]), ("test", "wxyz", ["yes", "no"]))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    fails(
        module(tmp_path / "data", test_split="test"),
        "Column 'label' must have the same class names in every split; the training split has ['no', 'yes'], split "
        "'test' has ['yes', 'no']. Cast one to the other's feature.",
    )
