import pytest

from reducr.data.published.glue import GlueDataModule

COLUMNS = ("one", "two", "label")


class Tiny(GlueDataModule):
    """Two splits, one of them a validation split."""

    task = "tiny"
    class_names = ("yes", "no")
    published_splits = ("train", "validation_matched")
    columns = (COLUMNS, ("sentence1", "sentence2", "gold_label"))

    def read(self):
        raise NotImplementedError


def tiny(folder):
    return Tiny(data_dir=folder, tokenizer="own")


def write_tsv(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")


def write_parquet(path, header, *rows):
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(list(rows), columns=list(header)).to_parquet(path)


def test_what_texts_hold_is_kept_as_it_is(tmp_path):
    odd = ['"a', "NA", "null", "it's 5\u2028€", "\ufeff", " b ", "c\rd"]
    write_tsv(tmp_path / "train.tsv", COLUMNS, *((text, text + "!", "0") for text in odd))
    write_tsv(tmp_path / "validation_matched.tsv", COLUMNS, ("x", "y", "1"))
    texts, target, sizes, notes = tiny(tmp_path).read_splits()
    assert texts.first == [*odd, "x"]
    assert texts.second == [*(text + "!" for text in odd), "y"]
    assert target.tolist() == [0] * 7 + [1]
    assert sizes == [7, 1]
    assert notes == ()


def test_labels_are_numbers_or_names(tmp_path):
    write_tsv(tmp_path / "train.tsv", COLUMNS, ("a", "b", "yes"), ("a", "b", "1"), ("a", "b", "no"), ("a", "b", "0"))
    write_parquet(tmp_path / "validation_matched-00000-of-00001.parquet", COLUMNS, ("a", "b", 1), ("a", "b", 0))
    assert tiny(tmp_path).read_splits()[1].tolist() == [0, 1, 1, 0, 1, 0]


def test_rows_without_a_label_or_a_text_are_left_out_and_noted(tmp_path):
    write_tsv(
        tmp_path / "train.tsv",
        ("sentence1", "gold_label", "sentence2"),
        ("a", "yes", "b"),
        ("a", "-", "b"),
        ("a", "yes"),
        ("a", "no", "b", "c"),
        ("c", "no", "d"),
    )
    write_parquet(
        tmp_path / "validation_matched-00000-of-00001.parquet", COLUMNS, ("e", "f", 1), ("e", None, 1), ("g", "h", -1)
    )
    texts, target, sizes, notes = tiny(tmp_path).read_splits()
    assert (texts.first, texts.second) == (["a", "c", "e"], ["b", "d", "f"])
    assert target.tolist() == [0, 1, 1]
    assert sizes == [2, 1]
    assert notes == (
        "Skipped 3 of 5 rows of train.tsv without label or text.",
        "Skipped 2 of 3 rows of validation_matched-00000-of-00001.parquet without label or text.",
    )


def test_the_folder_of_the_task_comes_first_and_parquet_before_text(tmp_path):
    for place, folder in enumerate(["tiny", "TINY", "."]):
        write_tsv(tmp_path / folder / "train.tsv", COLUMNS, (folder, "b", str(place % 2)))
        write_tsv(tmp_path / folder / "dev_matched.tsv", COLUMNS, (folder, "b", "0"))
    assert tiny(tmp_path).read_splits()[0].first == ["tiny", "tiny"]
    write_parquet(tmp_path / "tiny" / "train-00000-of-00001.parquet", COLUMNS, ("parquet", "b", 0))
    assert tiny(tmp_path).read_splits()[0].first == ["parquet", "tiny"]
    assert tiny(tmp_path / "TINY").read_splits()[0].first == ["TINY", "TINY"]


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path):
    write_tsv(tmp_path / "tiny" / "train.tsv", COLUMNS, ("a", "b", "0"))
    with pytest.raises(FileNotFoundError, match=r"TINY has no file of its split validation_matched") as caught:
        tiny(tmp_path).read_splits()
    message = str(caught.value)
    assert "validation_matched-00000-of-00001.parquet, validation_matched.tsv, " in message
    assert "dev_matched.tsv, dev_matched.tsv.gz) in " in message
    assert f" in {tmp_path / 'tiny'} or {tmp_path / 'TINY'} or {tmp_path}. Set `datamodule.data_dir=DIR`" in message
    assert "datamodule.download=true" in message


def test_other_columns_are_an_error(tmp_path):
    write_tsv(tmp_path / "train.tsv", ("one", "three", "label"), ("a", "b", "0"))
    write_tsv(tmp_path / "validation_matched.tsv", COLUMNS, ("a", "b", "0"))
    expected = "must have the columns one, two, label or sentence1, sentence2, gold_label; it has one, three, label"
    with pytest.raises(ValueError, match=expected):
        tiny(tmp_path).read_splits()


def test_an_unknown_label_is_named(tmp_path):
    write_tsv(tmp_path / "train.tsv", COLUMNS, ("a", "b", "0"), ("a", "b", "maybe"))
    write_tsv(tmp_path / "validation_matched.tsv", COLUMNS, ("a", "b", "0"))
    expected = r"Row 2 of train\.tsv has the label 'maybe'; expected 0, 1, yes, no, or -1 for no label"
    with pytest.raises(ValueError, match=expected):
        tiny(tmp_path).read_splits()


def test_no_folder_is_an_error_at_construction_unless_it_may_be_downloaded():
    with pytest.raises(
        ValueError, match=r"TINY has no data\. Set `datamodule\.data_dir=DIR`, .* set `datamodule\.download=true`"
    ):
        Tiny(data_dir=None)
    assert Tiny(data_dir=None, download=True).tokenization.download
