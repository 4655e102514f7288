from dataclasses import replace

import numpy as np
import pytest

from reducr.reports.plots import read_class_accuracies, read_weights, run_figure, save_run_plot
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


def run_folder(folder, names, accuracies, weights, *, methods=("uniform", "reducr")):
    """A run of one seed with these class names (C), accuracies (C) of each method, and weights (T, C) of REDUCR."""
    seed = folder / "seed_0"
    for method in methods:
        (seed / method / "csv").mkdir(parents=True)
        lines = [f"last,class,{number},1,{value:.6g}" for number, value in enumerate(accuracies)]
        content = "\n".join(["checkpoint_rule,partition,part,count,accuracy", *lines])
        (seed / method / "test_accuracy.csv").write_text(content)
    columns = ",".join(f"group_weight/{number}" for number in range(len(names)))
    lines = [f"{step},{','.join(map(str, row))}" for step, row in enumerate(weights, start=1)]
    (seed / "reducr" / "csv" / "metrics.csv").write_text("\n".join([f"step,{columns}", *lines]))
    parts = {
        f"{part}_{name}": np.arange(len(names)) for part in ("train", "holdout", "test") for name in ("target", "group")
    }
    np.savez(seed / "data.npz", class_names=np.array(names), **parts)
    return [replace(ROW, method=method, seed=0) for method in methods]


def texts(labels):
    return [label.get_text() for label in labels]


def test_a_few_classes_are_named_one_by_one(tmp_path):
    names = ["_under", "a$b$", "猫", "a very long name, which ends in 1"]
    rows = run_folder(tmp_path, names, [0.5, float("nan"), 0.25, 1.0], [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
    figure = run_figure(tmp_path, rows)
    weights, accuracies = figure.axes
    assert texts(accuracies.get_xticklabels()) == ["_under", r"a\$b\$", "猫", "a very long…ch ends in 1"]
    assert texts(weights.texts) == ["_under", r"a\$b\$", "猫", "a very long…ch ends in 1"]
    # the class without test points has no bar, and is not the worst
    assert [bar.get_height() for bar in accuracies.patches[:4]] == [0.5, 0, 0.25, 1]
    assert texts(figure.legends[0].get_texts()) == ["uniform (worst 0.25)", "reducr (worst 0.25)"]
    save_run_plot(tmp_path, rows, tmp_path / "few.png")


def test_of_many_classes_the_largest_weights_are_named_and_accuracies_are_in_order(tmp_path):
    values = np.random.default_rng(0).permutation(150) / 150
    accuracies = np.where(np.arange(150) == 7, np.nan, values)
    rows = run_folder(tmp_path, [f"a rather long intent {n}" for n in range(150)], accuracies, [values, values / 2])
    figure = run_figure(tmp_path, rows)
    weights, axes = figure.axes
    largest = np.argsort(-values)[:5]
    assert texts(weights.get_legend().get_texts()) == [
        f"{values[n] / 2:.3g}  a rather long intent {n}" for n in largest
    ]
    for line in axes.lines:
        np.testing.assert_allclose(line.get_ydata(), sorted(np.delete(values, 7)), atol=1e-5)
    assert axes.get_xlabel() == "the 150 classes, from the worst to the best of each method"
    assert len(axes.get_xticklabels()) < 15
    save_run_plot(tmp_path, rows, tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 10_000


def test_groups_have_the_names_that_the_data_gives_them(tmp_path):
    rows = run_folder(tmp_path, ["x", "y"], [0.5, 1.0], [[0.4, 0.6]])
    with np.load(tmp_path / "seed_0" / "data.npz") as data:
        arrays = dict(data) | {"train_group": np.array([1, 0])}
    np.savez(tmp_path / "seed_0" / "data.npz", **arrays)
    assert texts(run_figure(tmp_path, rows).axes[0].texts) == ["group 0", "group 1"]
    np.savez(tmp_path / "seed_0" / "data.npz", group_names=np.array(["land", "water"]), **arrays)
    assert texts(run_figure(tmp_path, rows).axes[0].texts) == ["land", "water"]
