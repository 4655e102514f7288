from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

import reducr
from reducr.data.published.qqp import QQP

CONFIG = Path(reducr.__file__).parent / "configs" / "datamodule" / "qqp.yaml"


def question(number):
    return f"question {number}", f"asked {number} again"


def write_hub(folder, *, num_train=20, num_validation=7, targets=(0, 1, 0)):
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, size in (("train", num_train), ("validation", num_validation)):
        numbers = range(start, start + size)
        pairs = [question(number) for number in numbers]
        frame = pd.DataFrame(pairs, columns=["question1", "question2"])
        frame = frame.assign(label=[targets[number % len(targets)] for number in numbers], idx=range(size))
        frame.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        start += size
    hidden = pd.DataFrame([(*question(0), -1, 0)], columns=["question1", "question2", "label", "idx"])
    hidden.to_parquet(folder / "test-00000-of-00001.parquet")


def test_even_rows_train_odd_ones_hold_out_and_validation_tests(tmp_path):
    write_hub(tmp_path / "qqp")
    splits = QQP(data_dir=tmp_path, tokenizer="own", max_length=32).splits(seed=0)
    assert splits.train.source.tolist() == list(range(0, 20, 2))
    assert splits.holdout.source.tolist() == list(range(1, 20, 2))
    assert splits.test.source.tolist() == list(range(20, 27))
    assert splits.class_names == ("not_duplicate", "duplicate")
    assert splits.train.is_corrupted is None
    assert torch.equal(splits.train.group, splits.train.target)


def test_the_files_of_glue_lack_cells_in_some_rows(tmp_path):
    folder = tmp_path / "QQP"
    folder.mkdir()
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = [f"{number}\t1\t2\t{'	'.join(question(number))}\t{number % 2}\n" for number in range(9)]
    (folder / "train.tsv").write_text(header + "".join(rows[:5]) + "7\t1\t2\tno more\n" + "".join(rows[5:]))
    (folder / "dev.tsv").write_text(header + "".join(rows[:4]))
    raw = QQP(data_dir=tmp_path).read()
    assert raw.notes == ("Skipped 1 of 10 rows of train.tsv without label or text.",)
    assert raw.input.first == [question(number)[0] for number in (*range(9), *range(4))]
    assert raw.target.tolist() == [number % 2 for number in (*range(9), *range(4))]
    assert raw.parts["holdout"].tolist() == [1, 3, 5, 7]
    assert raw.parts["test"].tolist() == [9, 10, 11, 12]
    assert not raw.has_clean_targets


def test_the_configuration_gives_the_published_sizes(tmp_path):
    """The real class counts, 229,468 and 134,378 training and 25,545 and 14,885 validation pairs, one for a hundred."""
    config = OmegaConf.to_container(OmegaConf.load(CONFIG))
    write_hub(tmp_path / "qqp", num_train=3638, num_validation=404, targets=[0] * 12 + [1] * 7)
    splits = QQP(data_dir=tmp_path, tokenizer="own", imbalance=config["imbalance"]).splits(seed=0)
    sizes = {part: len(data) for part, data in splits.by_name().items()}
    share = {part: float((data.target == 1).float().mean()) for part, data in splits.by_name().items()}
    assert sizes["train"] == pytest.approx(1483, abs=5)
    assert sizes["holdout"] == pytest.approx(672, abs=5)
    assert sizes["test"] == 404
    assert share["train"] == pytest.approx(0.226, abs=0.004)
    assert share["holdout"] == pytest.approx(0.226, abs=0.004)
    assert share["test"] == pytest.approx(0.368, abs=0.004)


def test_without_imbalance_every_pair_is_kept(tmp_path):
    write_hub(tmp_path / "qqp", num_train=3638, num_validation=404, targets=[0] * 12 + [1] * 7)
    splits = QQP(data_dir=tmp_path, tokenizer="own", imbalance=None).splits(seed=0)
    assert [len(data) for data in splits.by_name().values()] == [1819, 1819, 404]
