from dataclasses import replace

import numpy as np
import pytest

from reducr.reports.plots import read_class_accuracies, read_weights
from reducr.reports.tables import checkpoint_table, headline_table, markdown, mean_and_deviation
from unit.test_runs import ROW


def rows():
    base = [replace(ROW, seed=seed, worst_class_accuracy=worst) for seed, worst in ((0, 0.5), (1, 0.7))]
    return [replace(row, checkpoint_rule=rule) for row in base for rule in ("last", "best_worst_group", "best_mean")]


def test_mean_and_deviation():
    assert mean_and_deviation([0.5, 0.7]) == "0.600 ± 0.141"  # of a sample: sqrt(0.02)
    assert mean_and_deviation([0.5]) == "0.500"
    assert mean_and_deviation([]) == "–"


def test_headline_table():
    table = headline_table(rows())
    assert table.columns == ("method", "worst class", "mean", "steps", "seconds", "selecting", "selected", "corrupted")
    assert table.lines == (("reducr", "0.600 ± 0.141", "0.750 ± 0.000", "1000", "20.1", "2.2", "0.100", "–"),)
    assert "at the last step" in table.title
    assert "over 2 seed(s)" in table.title


def test_checkpoint_table_keeps_the_rules_apart():
    changed = [replace(row, worst_class_accuracy=0.9) if row.checkpoint_rule == "best_mean" else row for row in rows()]
    table = checkpoint_table(changed)
    assert table.columns[1::2] == ("best_worst_group: worst class", "best_mean: worst class")
    assert table.lines[0][1::2] == ("0.600 ± 0.141", "0.900 ± 0.000")


def test_markdown():
    lines = markdown(headline_table(rows())).splitlines()
    assert lines[2].startswith("| method | worst class |")
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4].startswith("| reducr | 0.600 ± 0.141 |")


def test_weights_are_read_in_the_order_of_the_groups(tmp_path):
    header = "group_weight/0,group_weight/1,group_weight/10,group_weight/2,holdout/mean_accuracy,step"
    (tmp_path / "metrics.csv").write_text(f"{header}\n0.1,0.2,0.4,0.3,,1\n,,,,0.5,1\n0.2,0.2,0.4,0.2,,2\n")
    steps, weights = read_weights(tmp_path / "metrics.csv")
    assert steps.tolist() == [1, 2]
    np.testing.assert_array_equal(weights, [[0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.2, 0.4]])
    (tmp_path / "other.csv").write_text("train/loss,step\n1.0,1\n")
    assert read_weights(tmp_path / "other.csv") is None


def test_class_accuracies_of_a_rule(tmp_path):
    path = tmp_path / "test_accuracy.csv"
    path.write_text(
        "checkpoint_rule,partition,part,count,accuracy\nlast,class,0,5,0.25\nlast,class,1,5,0.5\nlast,group,0,10,0.3\n"
        "best_mean,class,0,5,0.75\nbest_mean,class,1,5,1\n"
    )
    assert read_class_accuracies(path) == [0.25, 0.5]
    assert read_class_accuracies(path, checkpoint_rule="best_mean") == pytest.approx([0.75, 1.0])
