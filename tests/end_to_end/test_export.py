"""``reducr export``: short real runs, the files an export of them holds, and runs on these files."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from pyarrow import parquet

import local_data
from reducr._internal.run_check import accept_changes
from reducr._internal.run_folder import read_results
from reducr.cli import main
from reducr.pipeline import run_experiment

QUICK = ["num_candidates=20", "num_steps=8", "holdout.refresh_steps=4", "irreducible.num_epochs=1", "fraction=0.2"]
INTENTS = ["experiment=table", "datamodule.target_column=label", "datamodule.text_columns=[text]"]
SIZES = ["datamodule.max_length=8"]


def run(folder, *options, compare="reducr"):
    overrides = [*QUICK, "seeds=[0]", f"compare=[{compare}]", f"model_io.run_dir={folder}", *options]
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return run_experiment(compose("main", overrides=overrides))


def export(folder, *options, out):
    main(["export", str(folder), "--out", str(out), *map(str, options)])
    return parquet.read_table(out / "points.parquet"), json.loads((out / "export.json").read_text())


def refused(folder, *options, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--out", str(out), *options])
    assert stopped.value.code == 2
    assert not out.exists()
    return capsys.readouterr().err


def arrays(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two seeds, whose training parts differ, and three methods, one of which trains on the holdout part too."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    return run(folder, "experiment=digits", "seeds=[0,1]", *QUICK, compare="reducr,uniform,uniform_with_holdout")


def test_the_best_examples_of_the_run_are_exported(digits, tmp_path, capsys):
    table, facts = export(digits, "--fraction", 0.1, "--at-least", 3, out=tmp_path / "out")
    data, selected = arrays(digits / "seed_0" / "data.npz"), arrays(digits / "seed_0" / "reducr" / "selected.npz")
    size = len(data["train_target"])
    index = table["index"].to_numpy()
    assert len(index) == len(set(index.tolist())) == size // 10
    counts = [sum(int(step == i) for step in selected["index"].ravel()) for i in index.tolist()]
    assert table["num_times_selected"].to_pylist() == counts
    assert sum(counts) > 20
    times, sums = selected["num_times_scored"][index], selected["score_sum"][index]
    assert 0 < (times == 0).sum() < len(times)  # classes with too few examples that were candidates
    plain = [score / count if count else np.nan for score, count in zip(sums, times, strict=True)]
    np.testing.assert_allclose(table["mean_score"].to_numpy(), plain, rtol=1e-15)
    for column, name in (("source", "train_source"), ("target", "train_target"), ("group", "train_group"),
                         ("is_corrupted", "train_is_corrupted")):  # fmt: skip
        assert table[column].to_pylist() == data[name][index].tolist()
    assert table["class"].to_pylist() == [str(target) for target in table["target"].to_pylist()]
    of_class = np.bincount(data["train_target"][index], minlength=10)
    assert of_class.min() >= 3
    assert facts["counts"] == {
        str(number): [int((data["train_target"] == number).sum()), int(of_class[number])] for number in range(10)
    }
    assert json.loads(table.schema.metadata[b"reducr"])["seeds"] == [0]
    printed = capsys.readouterr().out
    assert f"{size // 10} of {size} examples, chosen by reducr\n" in printed
    assert "Counted seed 0 only: seed 1 drew a different training part." in printed


@pytest.mark.parametrize(("order", "columns"), [
    ("times", ("num_times_selected", "mean_score")), ("score", ("mean_score", "num_times_selected")),
])  # fmt: skip
def test_best_first(digits, tmp_path, order, columns):
    options = ["--fraction", 0.5, "--order", order, "--quotas", "none", "--seeds", 1, "--method", "uniform"]
    table, _ = export(digits, *options, "--at-least", 0, out=tmp_path / "out")
    keys = list(zip(*(np.nan_to_num(table[name].to_numpy(), nan=-np.inf).tolist() for name in columns), strict=True))
    assert keys == sorted(keys, reverse=True)
    assert len(set(keys)) > 50


def test_suspected_label_errors_are_left_out(digits, tmp_path):
    options = ["--fraction", 0.3, "--quotas", "equal", "--quota", "3=5", "--seeds", 0, "--drop-label-errors"]
    table, facts = export(digits, *options, out=tmp_path / "out")
    losses = np.stack([table[f"{name}_loss"].to_numpy() for name in ("model", "irreducible")])
    assert not (losses > np.log(10)).all(axis=0).any()
    assert facts["num_suspected"] > 0
    assert facts["counts"]["3"][1] == 5
    logits = np.load(digits / "seed_0" / "irreducible" / "table_plain" / "values.npy").astype(np.float64)
    index, target = table["index"].to_numpy(), table["target"].to_numpy()
    plain = np.log(np.exp(logits[index]).sum(axis=1)) - logits[index, target]
    np.testing.assert_allclose(losses[1], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "10"], "`fraction` must be in (0, 1], the fraction of the candidates to keep; got 10.0."),
        (["--fraction", "0.01"], "Cannot keep 4 examples: with at least 1 per class"),
        (
            ["--fraction", "0.1", "--method", "reduce"],
            "Did you mean 'reducr'? There are: reducr, uniform, uniform_with",
        ),
        (["--fraction", "0.1", "--method", "uniform_with_holdout"], "selects from the holdout part too"),
        (["--fraction", "0.1", "--seeds", "7"], "unknown seed '7' of reducr. There are: 0, 1."),
        (["--fraction", "0.1", "--seeds", "0", "1"], "Seeds 0 and 1 have different training parts"),
        (
            ["--fraction", "0.1", "--quota", "3"],
            "`--quota` must be CLASS=N, a class and a number of examples; got '3'",
        ),
        (["--fraction", "0.1", "--quota", "x=3"], "unknown class 'x' of `--quota`"),
        (["--fraction", "0.1", "--at-least", "-1"], "`--at-least` must be 0 or more; got -1."),
        (["--fraction", "0.1", "--link"], "`--link` has no effect: this data set is not exported as images."),
        (
            ["--fraction", "1", "--drop-label-errors"],
            "suspected label errors. Lower the fraction, or omit `--drop-label-errors`.",
        ),
    ],
)
def test_faults(digits, tmp_path, capsys, options, message):
    assert message in refused(digits, *options, out=tmp_path / "out", capsys=capsys)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_overwritten(digits, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["export", str(digits), "--fraction", "0.1", "--out", str(tmp_path / "out")])
    assert "exists and is not empty; an export is never overwritten. Choose another `--out`." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_no_run_no_selection_no_scores_no_pyarrow(digits, tmp_path, capsys, monkeypatch):
    options, out = ["--fraction", "0.1"], tmp_path / "out"
    assert "is not a run folder" in refused(tmp_path, *options, out=out, capsys=capsys)
    copy = tmp_path / "run"
    shutil.copytree(digits, copy, ignore=shutil.ignore_patterns("checkpoints", "uniform*", "seed_1"))
    killed = refused(copy, *options, "--drop-label-errors", out=out, capsys=capsys)
    assert "last.ckpt does not exist: the run was interrupted. Finish it with `reducr resume" in killed
    file = copy / "seed_0" / "reducr" / "selected.npz"
    index = arrays(file)["index"]
    np.savez(file, index=index, num_times_selected=index)
    accept_changes(copy)
    assert "has no scores: an earlier version wrote it" in refused(copy, *options, out=out, capsys=capsys)
    file.unlink()
    assert "No method in" in refused(copy, *options, out=out, capsys=capsys)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pyarrow is not installed. Install it with: pip install 'reducr[table]'" in refused(
        digits, *options, out=out, capsys=capsys
    )


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table(tmp_path):
    """Rows are those of the file, parts are disjoint, seeds that share their files are counted together."""
    local_data.intents(tmp_path)
    first = run(tmp_path / "drawn", *INTENTS, f"datamodule.train_file={tmp_path / 'intents.csv'}", *SIZES)
    table, facts = export(first, "--fraction", 0.25, out=tmp_path / "out")
    folder = tmp_path / "out" / "data"
    all_rows = rows_of(tmp_path / "intents.csv")
    parts = {part: rows_of(folder / f"{part}.csv") for part in ("train", "holdout", "test")}
    data = arrays(first / "seed_0" / "data.npz")
    assert parts["train"] == [all_rows[place] for place in sorted(table["source"].to_pylist())]
    for part in ("holdout", "test"):
        assert parts[part] == [all_rows[place] for place in sorted(data[f"{part}_source"])]
    again = run(tmp_path / "again", *INTENTS, *SIZES, *given(facts), "num_candidates=10", "seeds=[0,1]")
    assert len(arrays(again / "seed_1" / "data.npz")["train_target"]) == len(parts["train"]) == len(table)
    assert {row.method for row in read_results(again)} == {"reducr"}

    both, of_both = export(again, "--fraction", 0.5, "--order", "times", "--quotas", "none", out=tmp_path / "both")
    assert of_both["seeds"] == [0, 1]
    times = sum(arrays(again / f"seed_{seed}" / "reducr" / "selected.npz")["num_times_selected"] for seed in (0, 1))
    assert both["num_times_selected"].to_pylist() == times[both["index"].to_numpy()].tolist()


def given(facts):
    """Options of the data module that ``export.json`` says."""
    lists = {name: f"[{','.join(value)}]" for name, value in facts["data_options"].items() if isinstance(value, list)}
    values = facts["data_options"] | lists
    return [f"datamodule.{name}={'null' if value is None else value}" for name, value in values.items()]


@pytest.mark.long
def test_tables_of_several_formats_keep_them(tmp_path):
    import pandas as pd
    import pyarrow as pa

    local_data.intents(tmp_path)
    frame = pd.read_csv(tmp_path / "intents.csv", dtype=str)
    frame["text"] = 'a "quoted", ' + frame["text"]
    frame[:150].to_csv(tmp_path / "a.tsv.gz", sep="\t", index=False)
    schema = pa.schema([("text", pa.large_string()), ("label", pa.string()), ("idx", pa.string())])
    parquet.write_table(pa.Table.from_pandas(frame[150:], schema=schema, preserve_index=False), tmp_path / "b.parquet")
    files = f"datamodule.train_file=[{tmp_path / 'a.tsv.gz'},{tmp_path / 'b.parquet'}]"
    folder = run(tmp_path / "run", *INTENTS, *SIZES, files)
    table, facts = export(folder, "--fraction", 0.25, out=tmp_path / "out")
    assert facts["data_options"]["train_file"] == ["train.tsv.gz", "train_2.parquet"]
    first = pd.read_csv(tmp_path / "out" / "data" / "train.tsv.gz", sep="\t", dtype=str)
    second = parquet.read_table(tmp_path / "out" / "data" / "train_2.parquet")
    assert second.schema.remove_metadata() == schema
    places = sorted(table["source"].to_pylist())
    assert [*first["text"], *second["text"].to_pylist()] == frame["text"].iloc[places].tolist()
    run(tmp_path / "again", *INTENTS, *SIZES, *given(facts), "num_candidates=10")


@pytest.mark.long
def test_an_image_folder(tmp_path):
    local_data.image_folder(tmp_path / "images")
    options = ["experiment=image_folder", "datamodule.image_size=8", f"datamodule.data_dir={tmp_path / 'images'}"]
    # no image, and left out
    (tmp_path / "images" / "cat" / "0.png").write_bytes(b"no image")
    folder = run(tmp_path / "run", *options, "datamodule.unreadable=skip")
    exports = {
        name: export(folder, "--fraction", 0.2, *link, out=tmp_path / name)
        for name, link in (("copied", ()), ("linked", ("--link",)))
    }
    paths = sorted((tmp_path / "images").glob("*/*"))
    paths = sorted(paths, key=lambda path: (path.parent.name, path.as_posix()))
    paths.remove(tmp_path / "images" / "cat" / "0.png")
    data = arrays(folder / "seed_0" / "data.npz")
    for name, (table, facts) in exports.items():
        for part, source in (("train", table["source"].to_pylist()), ("test", data["test_source"].tolist())):
            folder = tmp_path / name / "data" / part
            written = sorted(folder.glob("*/*"))
            expected = sorted(paths[place].relative_to(tmp_path / "images") for place in source)
            assert [path.relative_to(folder) for path in written] == expected
            assert all(path.is_symlink() == (name == "linked") for path in written)
            originals = [tmp_path / "images" / path for path in expected]
            assert [path.read_bytes() for path in written] == [path.read_bytes() for path in originals]
        # the made images are the same in every class
        again = run(
            tmp_path / f"{name} again", *options, *given(facts), "num_candidates=10", "datamodule.overlap=allow"
        )
        assert len(arrays(again / "seed_0" / "data.npz")["train_target"]) == len(table)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library datasets
def test_a_hugging_face_data_set(tmp_path):
    from datasets import ClassLabel, Dataset, load_from_disk

    local_data.intents(tmp_path)
    rows = rows_of(tmp_path / "intents.csv")
    names = [f"intent {number}" for number in range(6)]
    columns = {"text": [row["text"] for row in rows], "label": [int(row["label"]) for row in rows]}
    columns |= {"note": [f"note {number}" for number in range(300)]}
    Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names)).save_to_disk(str(tmp_path / "set"))
    options = ["experiment=hugging_face", "datamodule.input_column=text", "datamodule.target_column=label", *SIZES]
    options += [f"datamodule.path={tmp_path / 'set'}"]
    folder = run(tmp_path / "run", *options, "datamodule.label_noise.train=0.2")
    table, facts = export(folder, "--fraction", 0.25, out=tmp_path / "out")
    written = load_from_disk(str(tmp_path / "out" / "data"))
    places = sorted(table["source"].to_pylist())
    assert written["train"]["note"][:] == [f"note {place}" for place in places]
    assert written["train"]["label"][:] == [columns["label"][place] for place in places]
    assert written["test"].features["label"].names == names
    assert "as read from the source, without datamodule.label_noise.train." in facts["notes"][-1]
    again = run(tmp_path / "again", *options, *given(facts), "num_candidates=10")
    assert len(arrays(again / "seed_0" / "data.npz")["train_target"]) == len(table)


def test_data_that_has_changed_is_refused(tmp_path, capsys):
    local_data.intents(tmp_path)
    folder = run(tmp_path / "run", *INTENTS, f"datamodule.train_file={tmp_path / 'intents.csv'}", *SIZES)
    lines = Path(tmp_path / "intents.csv").read_text().splitlines(keepends=True)
    Path(tmp_path / "intents.csv").write_text("".join([*lines[:1], *lines[:0:-1]]))
    message = refused(folder, "--fraction", "0.2", out=tmp_path / "out", capsys=capsys)
    assert "The data has changed since the run: " in message
    assert not list(tmp_path.glob(".*.partial"))
