import gzip

import pandas as pd
import pytest
import torch

from reducr.data.published.mnli import MNLI

SIZES = {"train": 31, "validation_matched": 6, "validation_mismatched": 5}
NAMES = ("entailment", "neutral", "contradiction")


def write_hub(folder, end):
    """The hub's columns as parquet or tsv: rows are numbered through all three files, labels in turn."""
    folder.mkdir(parents=True)
    start = 0
    for split, size in SIZES.items():
        numbers = range(start, start + size)
        frame = pd.DataFrame(
            {
                "premise": [f"premise {number}" for number in numbers],
                "hypothesis": [f"hypothesis {number}" for number in numbers],
                "label": [number % 3 for number in numbers],
                "idx": range(size),
            }
        )
        if end == "parquet":
            frame.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        else:
            frame.to_csv(folder / f"{split}.{end}", sep="\t", index=False)
        start += size
    (folder / f"test_matched.{end}").write_bytes(b"never read")


def write_glue(folder):
    """GLUE's own files: further columns, and five votes in those of validation."""
    folder.mkdir(parents=True)
    start = 0
    for split, size in SIZES.items():
        is_train = split == "train"
        votes = ["label1"] if is_train else [f"label{number}" for number in range(1, 6)]
        header = ["index", "promptID", "genre", "sentence1_parse", "sentence1", "sentence2", *votes, "gold_label"]
        lines = ["\t".join(header)]
        for number in range(start, start + size):
            label = NAMES[number % 3]
            first = [str(number), "1n", "fiction", "( a b )", f"premise {number}", f"hypothesis {number}"]
            lines.append("\t".join([*first, *[label] * len(votes), label]))
        (folder / f"{split.replace('validation', 'dev')}.tsv").write_text("\n".join(lines) + "\n")
        start += size


@pytest.mark.parametrize("form", ["parquet", "tsv", "tsv.gz", "glue"])
def test_every_published_form_gives_the_same_pairs(tmp_path, form):
    write_glue(tmp_path / "MNLI") if form == "glue" else write_hub(tmp_path / "mnli", form)
    raw = MNLI(data_dir=tmp_path).read()
    assert raw.input.first == [f"premise {number}" for number in range(42)]
    assert raw.input.second == [f"hypothesis {number}" for number in range(42)]
    assert raw.target.tolist() == [number % 3 for number in range(42)]
    assert raw.class_names == NAMES
    assert raw.notes == ()
    assert not raw.has_clean_targets


def test_the_first_half_trains_the_next_two_fifths_hold_out_the_rest_tests(tmp_path):
    write_hub(tmp_path / "mnli", "parquet")
    splits = MNLI(data_dir=tmp_path, tokenizer="own", num_tokens=100).splits(seed=0)
    assert splits.train.source.tolist() == list(range(21))
    assert splits.holdout.source.tolist() == list(range(21, 37))
    assert splits.test.source.tolist() == list(range(37, 42))
    assert splits.train.is_corrupted is None
    assert splits.train.input.shape == (21, 2, splits.facts["max_length"])
    assert set(splits.train.input[0, 1].tolist()) >= {0, 1}
    assert torch.equal(splits.train.group, splits.train.target)


def test_the_published_counts_follow_from_the_published_rows():
    num_examples = 392_702 + 9_815 + 9_832
    train, holdout = num_examples // 2, 2 * num_examples // 5
    assert (train, holdout, num_examples - train - holdout) == (206_174, 164_939, 41_236)


def test_pairs_without_a_label_are_left_out_before_the_parts_are_made(tmp_path):
    write_glue(tmp_path / "MNLI")
    path = tmp_path / "MNLI" / "train.tsv"
    lines = path.read_text().splitlines()
    lines[5] = lines[5].rsplit("\t", 1)[0] + "\t-"
    path.write_text("\n".join(lines) + "\n")
    raw = MNLI(data_dir=tmp_path).read()
    assert raw.notes == ("Skipped 1 of 31 rows of train.tsv without label or text.",)
    assert len(raw.target) == 41
    assert raw.parts["holdout"].tolist() == list(range(20, 36))
    assert raw.parts["test"].tolist() == list(range(36, 41))


def test_a_truncated_file_is_named(tmp_path):
    write_hub(tmp_path / "mnli", "tsv.gz")
    path = tmp_path / "mnli" / "train.tsv.gz"
    path.write_bytes(gzip.compress(b"premise\thypothesis\tlabel\n" + b"a\tb\t0\n" * 9)[:-9])
    with pytest.raises(ValueError, match=r"mnli/train\.tsv\.gz is truncated or damaged"):
        MNLI(data_dir=tmp_path).read()
