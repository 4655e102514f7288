import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from reducr._internal.run_folder import run_lock, write_results
from reducr.data import RawData
from reducr.data.io.text import Texts
from reducr.reports import write_report
from reducr.reports.accuracy_tables import checkpoint_table, headline_table, worst_class
from reducr.reports.class_plots import label_heights
from reducr.reports.comparison import Series, class_and_group_names, comparisons
from reducr.reports.figure import COLOURS, REDUCR_COLOUR, label_text
from reducr.reports.gallery import Exhibit, galleries
from reducr.reports.metrics_log import MetricsLog
from reducr.reports.page import _exhibit as example_html
from reducr.reports.plots import plots
from reducr.reports.run_reader import Run, Training
from reducr.reports.statistics import estimate
from reducr.reports.tables import Table, comma_separated, markdown, mean_and_deviation
from unit.test_run_folder import ROW


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
    assert table.title == "Test accuracy and cost at the last step, over 2 seeds"


def test_checkpoint_table_keeps_the_rules_apart():
    changed = [replace(row, worst_class_accuracy=0.9) if row.checkpoint_rule == "best_mean" else row for row in rows()]
    table = checkpoint_table(changed)
    assert table.columns[1::2] == ("best_worst_group: worst class", "best_mean: worst class")
    assert table.lines[0][1::2] == ("0.600 ± 0.141", "0.900 ± 0.000")


TABLE = Table(
    "Title",
    ("method", "worst", "reducr minus method: worst", "steps"),
    (("a|b", estimate([0.5, 0.7]), estimate([0.1]), "10"), ("c", "–", "–", "–")),
    note="Note.",
)


def test_markdown():
    assert markdown(TABLE).splitlines() == [
        "Title",
        "",
        "| method | worst | reducr minus method: worst | steps |",
        "| --- | ---: | ---: | ---: |",
        "| a\\|b | 0.600 ± 0.141 [-0.671, 1.871] | +0.100 | 10 |",
        "| c | – | – | – |",
        "",
        "Note.",
    ]


def test_csv_has_every_number_of_an_estimate_in_a_column_of_its_own():
    first, second = csv.DictReader(io.StringIO(comma_separated(TABLE)))
    assert first["method"] == "a|b"
    assert float(first["worst"]) == 0.6
    assert float(first["worst: deviation"]) == pytest.approx(0.141421)
    assert (float(first["worst: low"]), float(first["worst: high"])) == pytest.approx((-0.670620, 1.87062), abs=1e-5)
    assert first["worst: seeds"] == "2"
    assert first["reducr minus method: worst: low"] == ""
    assert {value for name, value in second.items() if name != "method"} == {""}


def test_the_worst_class_has_examples():
    assert worst_class(np.array([[5, 5, 0], [0, 0, 0], [1, 0, 9]])) == 0


# ---- reading


def test_weights_are_read_in_the_order_of_the_groups(tmp_path):
    header = "group_weight/0,group_weight/1,group_weight/10,group_weight/2,holdout/mean_accuracy,step"
    # the last line is still being written
    (tmp_path / "metrics.csv").write_text(f"{header}\n0.1,0.2,0.4,0.3,,1\n,,,,0.5,1\n0.2,0.2,0.4,0.2,,2\n0.3,0.")
    metrics = MetricsLog.read(tmp_path / "metrics.csv")
    steps, weights = metrics.by_group("group_weight/")
    assert steps.tolist() == [1, 2]
    np.testing.assert_array_equal(weights, [[0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.2, 0.4]])
    assert [values.tolist() for values in metrics.curve("holdout/mean_accuracy")] == [[1], [0.5]]
    assert [values.tolist() for values in metrics.curve("test/mean_accuracy")] == [[], []]
    (tmp_path / "empty.csv").write_text("")
    assert MetricsLog.read(tmp_path / "empty.csv").columns == {}


def test_of_many_steps_some_are_read_but_every_validation_is(tmp_path):
    lines = [f"{step / 10},,{step}\n" + f",{step / 1e4},{step}\n" * (step % 50 == 0) for step in range(1, 5001)]
    (tmp_path / "metrics.csv").write_text("".join(["train/loss,holdout/mean_accuracy,step\n", *lines]))
    metrics = MetricsLog.read(tmp_path / "metrics.csv")
    steps, losses = metrics.curve("train/loss")
    assert 500 < len(steps) <= 601
    assert steps[-1] == 5000
    np.testing.assert_allclose(losses, steps / 10)
    assert metrics.curve("holdout/mean_accuracy")[0].tolist() == list(range(50, 5001, 50))


def test_class_accuracies_of_a_rule(tmp_path):
    folder = tmp_path / "seed_3" / "reducr"
    folder.mkdir(parents=True)
    (folder / "test_accuracy.csv").write_text(
        "checkpoint_rule,partition,part,count,accuracy\nlast,class,0,5,0.25\nlast,class,1,5,0.5\nlast,group,0,10,0.3\n"
        "best_mean,class,0,5,0.75\nbest_mean,class,1,5,1\n"
    )
    training = Training(tmp_path, "reducr", 3, {})
    assert training.class_accuracy().tolist() == [0.25, 0.5]
    assert training.class_accuracy("best_mean").tolist() == [0.75, 1.0]
    assert Training(tmp_path, "uniform", 3, {}).class_accuracy() is None


def run_folder(
    folder,
    names,
    accuracies=None,
    weights=None,
    *,
    methods=("uniform", "reducr"),
    seeds=(0,),
    step_size=0.1,
    **settings,
):
    """A run with these class names (C), accuracies (C) of each method, weights (T, C) of REDUCR, and settings."""
    accuracies = [0.5] * len(names) if accuracies is None else accuracies
    weights = [[1 / len(names)] * len(names)] if weights is None else weights
    parts = {
        f"{part}_{name}": np.arange(len(names)) for part in ("train", "holdout", "test") for name in ("target", "group")
    }
    for seed in seeds:
        for method in methods:
            own = folder / f"seed_{seed}" / method
            (own / "csv").mkdir(parents=True)
            lines = [f"last,class,{number},1,{value:.6g}" for number, value in enumerate(accuracies)]
            content = "\n".join(["checkpoint_rule,partition,part,count,accuracy", *lines])
            (own / "test_accuracy.csv").write_text(content)
            columns = ",".join(f"group_weight/{number}" for number in range(len(names)))
            shown = weights if method == "reducr" else [[1 / len(names)] * len(names)] * len(weights)
            lines = [f"{step},{','.join(map(str, row))}" for step, row in enumerate(shown, start=1)]
            (own / "csv" / "metrics.csv").write_text("\n".join([f"step,{columns}", *lines, ""]))
        arrays = parts | {"train_source": np.arange(len(names)), "class_names": np.array(names)}
        np.savez(folder / f"seed_{seed}" / "data.npz", **arrays)
    config = {
        "compare": list(methods), "seeds": list(seeds), "selection_method": None, "seed": None, "name": "small",
        "datamodule": {"_target_": "x", "data_dir": str(folder)},
        "methods": {"reducr": {"options": {"step_size": step_size}}}, "model_io": {"home_dir": str(folder)}, **settings,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "command.txt").write_text("reducr run <quick>\n")
    (folder / "run.json").write_text(json.dumps({"format": 1, "command": "run", "started_in": str(folder)}))
    rules = ("last", "best_worst_group", "best_mean")
    known = [replace(ROW, method=m, seed=s, checkpoint_rule=rule) for s in seeds for m in methods for rule in rules]
    write_results(folder, known)
    return Run.read(folder)


def labels(runs):
    return [[series.label for series in comparison.series] for comparison in comparisons(runs)]


def test_runs_with_equal_settings_are_pooled(tmp_path):
    first = run_folder(tmp_path / "a", ["x", "y"], seeds=(0, 1))
    other_seeds = run_folder(tmp_path / "b", ["x", "y"], seeds=(2,), methods=("reducr",))
    (comparison,) = comparisons([first, other_seeds])
    assert [(series.label, sorted(series.trainings)) for series in comparison.series] == [
        ("uniform", [0, 1]),
        ("reducr", [0, 1, 2]),
    ]
    assert comparison.series[1].trainings[2].run == tmp_path / "b"


def test_labels_name_the_options_that_differ(tmp_path):
    base = run_folder(tmp_path / "a", ["x", "y"])
    other = run_folder(tmp_path / "b", ["x", "y"], methods=("reducr", "payoff"), step_size=0.5)
    again = run_folder(tmp_path / "c", ["x", "y"], methods=("reducr",))
    assert labels([base, other]) == [
        ["uniform", "reducr (options.step_size=0.1)", "reducr (options.step_size=0.5)", "payoff"]
    ]
    # equal settings and seeds: labelled by folder
    name = tmp_path.name
    assert labels([base, again]) == [["uniform", f"reducr ({name}/a)", f"reducr ({name}/c)"]]
    elsewhere = run_folder(tmp_path / "d", ["x", "y"], datamodule={"_target_": "x", "label_noise": 0.3})
    assert labels([base, elsewhere]) == [["uniform", "reducr"], ["uniform", "reducr"]]


def test_groups_take_their_names_from_the_data(tmp_path):
    run_folder(tmp_path, ["x", "y"])
    with np.load(tmp_path / "seed_0" / "data.npz") as data:
        arrays = dict(data)
    assert class_and_group_names(arrays) == (["x", "y"], ["x", "y"])
    arrays["train_group"] = np.array([1, 0])
    assert class_and_group_names(arrays)[1] == ["group 0", "group 1"]
    assert class_and_group_names(arrays | {"group_names": np.array(["land", "water"])})[1] == ["land", "water"]


def report(*folders, out):
    console = Console(file=io.StringIO(), width=120)
    write_report(folders, out=out, console=console)
    return console.file.getvalue()


def test_errors_about_run_folders_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no config.yaml. Give a folder made by `reducr run` or"):
        Run.read(tmp_path)
    folder = tmp_path / "run"
    run_folder(folder, ["x", "y"])
    with pytest.raises(ValueError, match="given more than once"):
        report(folder, tmp_path / "run" / ".." / "run", out=tmp_path / "out")
    (folder / "seed_0" / "reducr" / "selected.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"selected.npz is damaged: expected arrays, but File is not a zip file"):
        report(folder, out=tmp_path / "out")
    (folder / "seed_0" / "reducr" / "selected.npz").unlink()
    (folder / "config.yaml").write_text("compare: [")
    with pytest.raises(ValueError, match=r"config.yaml is not valid YAML"):
        Run.read(folder)
    (folder / "config.yaml").write_text("compare: [reducr]\n")
    with pytest.raises(ValueError, match="is not the configuration of a run: it must have compare, seeds"):
        Run.read(folder)


def test_states_of_runs(tmp_path):
    folder = tmp_path / "run"
    assert run_folder(folder, ["x", "y"]).state == "finished"
    with run_lock(folder):
        assert Run.read(folder).state == "running"
        assert f"{folder} is running; the report covers what it has so far." in report(folder, out=tmp_path / "out")
        page = (tmp_path / "out" / "report.html").read_text()
        assert '<span class="state running">running</span>' in page
        assert f"Update this page with <code>reducr report {folder}</code>." in page
        assert "reducr run &lt;quick&gt;" in page
    (folder / "results.csv").unlink()
    assert Run.read(folder).state == "interrupted"
    assert "interrupted" in report(folder, out=tmp_path / "out")
    assert "No method has finished yet" in (tmp_path / "out" / "report.html").read_text()
    for path in folder.glob("seed_0/*/csv/metrics.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="was interrupted before its first method"):
        Run.read(folder)
    with run_lock(folder), pytest.raises(FileNotFoundError, match="still reading its data or training its irreducible"):
        Run.read(folder)
    (folder / "run.json").write_text(json.dumps({"format": 1, "command": "irreducible", "started_in": "."}))
    with pytest.raises(ValueError, match="holds irreducible models only"):
        Run.read(folder)


# ---- plots


def texts(labels):
    return [label.get_text() for label in labels]


def draw(run):
    (comparison,) = comparisons([run])
    return {plot.name: plot for plot in plots(comparison)}


def test_a_few_classes_are_named_one_by_one(tmp_path):
    names = ["_under", "a$b$", "猫", "a very long name, which ends in 1"]
    run = run_folder(tmp_path, names, [0.5, float("nan"), 0.25, 1.0], [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
    drawn = draw(run)
    (axes,) = drawn["accuracy_by_class"].figure.axes
    shown = ["_under", r"a\$b\$", "猫", "a very long…ch ends in 1"]
    assert texts(axes.get_xticklabels()) == shown
    assert texts(drawn["group_weight_reducr"].figure.axes[0].texts) == shown
    # the class without test examples has no bar, and is not the worst
    assert [bar.get_height() for bar in axes.patches[:4]] == [0.5, 0, 0.25, 1]
    assert drawn["accuracy_by_class"].alternative == (
        "Test accuracy of each class. uniform worst in 猫 with 0.25; reducr worst in 猫 with 0.25."
    )
    assert (
        "Largest at the end: a very long name, which ends in 1 0.4, 猫 0.3" in drawn["group_weight_reducr"].alternative
    )
    assert "group_weight_uniform" not in drawn  # its weights never change
    drawn["accuracy_by_class"].save(tmp_path)
    assert (tmp_path / "accuracy_by_class.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_of_many_classes_the_largest_weights_are_named_and_accuracies_are_in_order(tmp_path):
    values = np.random.default_rng(0).permutation(150) / 150
    accuracies = np.where(np.arange(150) == 7, np.nan, values)
    run = run_folder(tmp_path, [f"a rather long intent {n}" for n in range(150)], accuracies, [values, values / 2])
    drawn = draw(run)
    largest = np.argsort(-values)[:5]
    named = ", ".join(texts(drawn["group_weight_reducr"].figure.axes[0].texts))
    assert sorted(named.split(", ")) == sorted(label_text(f"a rather long intent {n}") for n in largest)
    (axes,) = drawn["accuracy_by_class"].figure.axes
    for line in axes.lines:
        np.testing.assert_allclose(line.get_ydata(), sorted(np.delete(values, 7)), atol=1e-5)
    assert axes.get_xlabel() == "the 150 classes, from the worst to the best of each method"
    assert len(axes.get_xticklabels()) < 15


def test_lines_that_end_close_together_share_a_label():
    assert label_heights(np.array([0.5, 0.1, 0.51, 0.3])) == [(0.1, [1]), (0.3, [3]), (pytest.approx(0.505), [0, 2])]


def luminance(colour):
    """Relative luminance, by the Web Content Accessibility Guidelines 2.2."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#14171c"])
def test_every_colour_stands_out_on_light_and_dark_ground(ground):
    for colour in (REDUCR_COLOUR, *COLOURS):
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_an_inline_plot_takes_the_colour_of_the_page_and_says_what_it_shows(tmp_path):
    plot = draw(run_folder(tmp_path, ["x", 'a "b" & <c>'], [0.5, 0.25]))["accuracy_by_class"]
    text = plot.inline_svg("s1")
    head = text[: text.index(">")]
    assert 'role="img"' in head
    assert "uniform worst in a &quot;b&quot; &amp; &lt;c&gt; with 0.25" in head
    assert "width=" not in head.replace("stroke-width=", "")
    assert "#111213" not in text
    assert "currentColor" in text
    assert plot.svg() == plot.svg()  # nothing random, no date
    assert "#111213" in plot.svg()


# ---- examples


def test_texts_are_shown_as_they_are(tmp_path):
    run = run_folder(tmp_path, ["good", "bad"], methods=("reducr",))
    np.savez(tmp_path / "seed_0" / "reducr" / "selected.npz", index=[[1], [1]], num_times_selected=[0, 2])
    raw = RawData(
        input=Texts(["fine <b>", "z" * 500], ["one", "two"]), target=torch.tensor([0, 1]), class_names=("good", "bad")
    )
    (comparison,) = comparisons([run])
    note, (most, least) = galleries(comparison, lambda folder: raw)
    assert note.startswith("Training examples of seed 0, as reducr selected them.")
    assert [(example.index, example.label, example.times_selected) for example in most.examples] == [
        (1, "bad", 2),
        (0, "good", 0),
    ]
    assert most.examples[0].text == "z" * 280 + "… ⏵ two"
    assert [example.text for example in least.examples] == ["fine <b> ⏵ one"]
    write_report([tmp_path], out=tmp_path / "out", console=Console(quiet=True), open_data=lambda folder: raw)
    assert "<blockquote>fine &lt;b&gt; ⏵ one</blockquote>" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_in_an_example_controls_a_terminal_or_a_page():
    text = example_html(Exhibit(1, "a\x1b[2J<b>", 0, None, None, "\x07", None, None, "x\x9b31m\n\u202ey"))
    assert "label a\\x1b[2J&lt;b&gt;<br>reference model: \\x07<br>" in text
    assert "<blockquote>x\\x9b31m\n\\u202ey</blockquote>" in text


def test_without_the_data_the_page_says_why_no_examples_are_shown(tmp_path):
    run = run_folder(tmp_path, ["x", "y"], methods=("reducr",))
    (comparison,) = comparisons([run])
    assert galleries(comparison, None)[0] == "No method in these runs recorded which examples it selected."
    np.savez(tmp_path / "seed_0" / "reducr" / "selected.npz", index=[[1], [1]], num_times_selected=[0, 2])
    (comparison,) = comparisons([Run.read(tmp_path)])

    def missing(folder):
        raise FileNotFoundError("images.npy is missing; give datamodule.data_dir.")

    assert galleries(comparison, missing) == (
        (
            "No examples are shown, because the data could not be read again: "
            "images.npy is missing; give datamodule.data_dir."
        ),
        [],
    )
    other = RawData(input=torch.zeros(2, 1, 4, 4), target=torch.tensor([0, 1]), class_names=("x", "z"))
    assert (
        "The data has changed since the run: its classes have other names." in galleries(comparison, lambda _: other)[0]
    )
    few = replace(other, class_names=("x", "y"), target=torch.tensor([0]))
    assert "it has 1 examples, and the run used example 1." in galleries(comparison, lambda _: few)[0]
    numbers = replace(other, class_names=("x", "y"), input=torch.zeros(2, 3))
    assert "neither images nor texts" in galleries(comparison, lambda _: numbers)[0]


def test_values_of_a_series_come_from_finished_seeds(tmp_path):
    trainings = {0: Training(tmp_path, "reducr", 0, {"last": ROW}), 1: Training(tmp_path, "reducr", 1, {})}
    series = Series("reducr", "reducr", trainings)
    assert series.values("mean_accuracy") == {0: ROW.mean_accuracy}
    assert series.values("corrupted_fraction") == {}
