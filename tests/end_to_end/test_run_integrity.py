"""A run folder that is damaged, edited, moved or someone else's: real runs, real files."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import warnings

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

import forked
from image_files import write
from reducr._internal.manifest import deciding_files
from reducr._internal.run_check import accept_changes, changed_files
from reducr._internal.run_folder import read_results
from reducr._internal.run_start import RunStart, add_to_start
from reducr.exports import ExportOptions, export_run
from reducr.pipeline import ResumeOptions, open_data, resume_run, run_experiment
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.trust import UntrustedError
from reducr.reports import make_console, write_report

QUICK = [
    "seeds=[0]",
    "compare=[uniform,reducr]",
    "num_steps=8",
    "holdout.refresh_steps=2",
    "irreducible.num_epochs=2",
    "model.hidden_sizes=[8]",
    "trainer.accelerator=cpu",
    "model_io.resume_seconds=0",
    "record.page=false",
]
NUM_FLIPS = 40


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[*QUICK, *overrides])


def interrupt(config, *, method="reducr", step=6):
    """Run until a step of a method, at which it fails."""

    class StopError(Exception):
        pass

    def advance(display, now, accuracy):
        if now == step and names[-1].endswith(method):
            raise StopError

    def begin(display, description, *args, **kwargs):
        names.append(description)

    names = [""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDisplay, "advance", advance)
        patch.setattr(RunDisplay, "begin", begin)
        with pytest.raises(StopError):
            run_experiment(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run_experiment(composed(f"model_io.run_dir={folder}"))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    interrupt(composed(f"model_io.run_dir={folder}"))
    return folder


@pytest.fixture
def copy_of(tmp_path):
    """A function that copies a run folder to a new place."""

    def copy(folder):
        place = tmp_path / f"copy_{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, place)
        return place

    return copy


def results(folder):
    """All results but seconds."""
    rows = [row.__dict__ for row in read_results(folder)]
    return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in rows]


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def use(folder, out):
    """Do with a folder what users do; what must not change silently."""
    with contextlib.chdir(folder.parent):
        write_report([folder], out=out / "report", console=make_console(), with_page=False)
        export_run(folder, out / "export", ExportOptions(fraction=0.1, drops_label_errors=True, method="reducr"))
    return (out / "report" / "results.md").read_text(), json.loads((out / "export" / "export.json").read_text())[
        "counts"
    ]


# Trust


def edited_by_someone(folder, marker):
    """A folder whose configuration runs code, with a manifest that fits it."""
    code = {"_target_": "os.mkdir", "path": str(marker)}
    path = folder / "config.yaml"
    config = OmegaConf.load(path)
    for section in ("callbacks", "datamodule"):
        config[section]["attack"] = code
    OmegaConf.save(config, path)
    accept_changes(folder)
    return folder


def test_a_folder_of_someone_else_runs_no_code(finished, copy_of, tmp_path):
    marker = tmp_path / "marker"
    folder = edited_by_someone(copy_of(finished), marker)
    (folder / "results.csv").unlink()
    told = r"config.yaml names code that is not part of reducr:\n  datamodule.attack: os.mkdir\("
    for command in (
        lambda: resume_run(folder),
        lambda: open_data(folder),
        lambda: export_run(folder, tmp_path / "export", ExportOptions(fraction=0.1)),
    ):
        with pytest.raises(UntrustedError, match=told):
            command()
    assert not marker.exists()


@pytest.mark.long
def test_a_report_of_a_folder_of_someone_else_shows_no_examples_and_says_why(finished, copy_of, tmp_path):
    marker = tmp_path / "marker"
    folder = edited_by_someone(copy_of(finished), marker)
    done = forked.run(["-m", "reducr.cli", "report", folder, "--out", tmp_path / "out"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"datamodule.attack: os.mkdir(path='{marker}')" in done.stderr
    assert "--trust" in done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No examples are shown, because the data could not be read again" in page
    assert "were accepted at" in page
    assert not marker.exists()


def test_a_user_who_trusts_a_folder_runs_it(finished, copy_of, tmp_path, capsys):
    marker = tmp_path / "marker"
    folder = edited_by_someone(copy_of(finished), marker)
    with pytest.raises(TypeError, match="attack"):
        open_data(folder, is_trusted=True)
    assert marker.exists()
    assert f"--trust: runs datamodule.attack: os.mkdir(path='{marker}')" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", ".hidden", "irreducible"], ids=range(5))
def test_a_method_cannot_be_a_folder_elsewhere(name, tmp_path):
    config = composed(f"model_io.run_dir={tmp_path / 'run'}")
    with open_dict(config):
        config.methods[name] = config.methods.uniform
        config.compare = [name]
    with pytest.raises(ValueError, match="name of a method is that of a folder"):
        run_experiment(config)


def test_a_run_is_not_resumed_through_links(finished, copy_of, tmp_path):
    folder = copy_of(finished)
    elsewhere = tmp_path / "elsewhere"
    (folder / "seed_0").rename(elsewhere)
    (folder / "seed_0").symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"seed_0 is a link to .*, outside the run folder"):
        resume_run(folder)


# Damage


@pytest.mark.parametrize("kind", ["finished", "unfinished"])
def test_no_flipped_bit_is_accepted_silently(kind, request, copy_of, is_exhaustive):
    """A change of a file is refused with its name, or the file decides nothing, or a state before it is used."""
    original = request.getfixturevalue(kind)
    draw = random.Random(kind)
    files = sorted(str(path.relative_to(original)) for path in original.rglob("*") if path.is_file())
    decides = {*deciding_files(folder=original), "manifest.jsonl"}
    copy = copy_of(original)
    expected = results(resume_run(copy_of(original))) if is_exhaustive else None
    outcomes = []
    for _ in range(NUM_FLIPS):
        file = draw.choice(files)
        flip(copy / file, draw)
        named = [change.file for change in changed_files(copy)]
        if named:
            assert file in named
            outcomes.append("refused")
        elif is_exhaustive:
            place = copy_of(copy)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a damaged state to resume from
                try:
                    resume_run(place)
                except ValueError as error:
                    assert file in str(error)  # noqa: PT017
                    outcomes.append("refused later")
                else:
                    assert results(place) == expected, file
                    outcomes.append("the same")
            shutil.rmtree(place)
        else:
            # states to resume from have their checksum in their name; arrays that are written again have one inside
            assert file not in decides or file.endswith(".npz") or "/resume/" in file, file
        shutil.copy2(original / file, copy / file)
    assert outcomes.count("refused") > NUM_FLIPS / 4


def test_what_was_reproduced_is_refused(finished, unfinished, copy_of):
    """The cases of the issue: weights of both stages, a digit of the results, an option."""
    folder = copy_of(unfinished)
    draw = random.Random(0)
    changes = {
        "seed_0/irreducible/plain/model.ckpt": lambda path: flip(path, draw),
        "seed_0/uniform/checkpoints/best_mean.ckpt": lambda path: flip(path, draw),
        "seed_0/reducr/checkpoints/best_worst_group.ckpt": lambda path: flip(path, draw),
        "seed_0/reducr/csv/metrics.csv": lambda path: rewrite(path, ",0,", ",1,"),
        "results.csv": lambda path: rewrite(path, ",0.", ",0.9"),
        "config.yaml": lambda path: rewrite(path, "num_steps: 8", "num_steps: 6"),
        "run.json": lambda path: rewrite(path, '"num_threads": ', '"num_threads": 1'),
    }
    for file, change in changes.items():
        change(folder / file)
        with pytest.raises(ValueError, match=re.escape(f"{file} (differs from what the run wrote)")) as error:
            resume_run(folder)
        assert f"`reducr resume {folder} --accept-changes`" in str(error.value)
        shutil.copy2(unfinished / file, folder / file)
    (folder / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match=r"manifest.jsonl \(is missing\)"):
        resume_run(folder)
    shutil.copy2(unfinished / "manifest.jsonl", folder / "manifest.jsonl")
    resume_run(folder)
    assert results(folder) == results(finished)


def test_report_and_export_refuse_too(finished, copy_of, tmp_path):
    folder = copy_of(finished)
    for file in ("results.csv", "seed_0/reducr/selected.npz", "seed_0/reducr/checkpoints/last.ckpt"):
        flip(folder / file, random.Random(1))
        with pytest.raises(ValueError, match=re.escape(f"{file} (differs from what the run wrote)")):
            use(folder, tmp_path / file.replace("/", "_"))
        shutil.copy2(finished / file, folder / file)


@pytest.mark.parametrize(
    "files",
    [
        ["results.csv", "seed_0/uniform/csv/metrics.csv"],
        ["seed_0/irreducible/plain/model.ckpt", "seed_0/data.npz"],
        ["seed_0/reducr/checkpoints/best_mean.ckpt"],
    ],
)
def test_what_is_damaged_is_made_again_and_is_the_same(files, finished, unfinished, copy_of):
    folder = copy_of(unfinished)
    for file in files:
        flip(folder / file, random.Random(2))
    resume_run(folder, ResumeOptions(makes_again=True))
    by_method = sorted(results(folder), key=str)
    assert by_method == sorted(results(finished), key=str)
    assert changed_files(folder) == []


def test_a_configuration_cannot_be_made_again(unfinished, copy_of):
    folder = copy_of(unfinished)
    rewrite(folder / "config.yaml", "num_steps: 8", "num_steps: 6")
    with pytest.raises(ValueError, match=r"config.yaml in .* cannot be made again. Restore a copy of it, or accept it"):
        resume_run(folder, ResumeOptions(makes_again=True))


def test_a_checkpoint_of_another_model_is_named(unfinished, copy_of):
    folder = copy_of(unfinished)
    rewrite(folder / "config.yaml", "hidden_sizes:\n  - 8", "hidden_sizes:\n  - 9")
    with pytest.raises(ValueError, match=r"^A checkpoint in .* is not one of the model in its config\.yaml\."):
        resume_run(folder, ResumeOptions(accepts_changes=True))


def test_an_accepted_change_is_recorded(finished, copy_of, tmp_path):
    folder = copy_of(finished)
    rewrite(folder / "results.csv", ",0.", ",0.9")
    resume_run(folder, ResumeOptions(accepts_changes=True))
    (accepted,) = RunStart.read(folder).accepted
    assert list(accepted["files"]) == ["results.csv"]
    assert accepted["files"]["results.csv"]["was"] != accepted["files"]["results.csv"]["is"]
    write_report([folder], out=tmp_path / "out", console=make_console(), with_page=False)
    assert "Changes of results.csv in" in (tmp_path / "out" / "results.md").read_text()
    resume_run(folder)


def test_a_report_tells_which_files_are_gone(finished, copy_of, tmp_path):
    folder = copy_of(finished)
    (folder / "seed_0/reducr/selected.npz").unlink()
    (folder / "seed_0/uniform/checkpoints/last.ckpt").unlink()  # takes room, and is no part of a report
    write_report([folder], out=tmp_path / "out", console=make_console(), with_page=False)
    (note,) = [line for line in (tmp_path / "out" / "results.md").read_text().splitlines() if "lacks" in line]
    assert note.replace("\\", "").endswith(" lacks seed_0/reducr/selected.npz, and the report what is in there.")


def test_a_stage_of_another_run_is_compared_with_its_manifest(finished, copy_of, tmp_path):
    stage = copy_of(finished)
    flip(stage / "seed_0/irreducible/plain/model.ckpt", random.Random(3))
    options = [f"irreducible.dir={stage}", "compare=[reducr]", f"model_io.run_dir={tmp_path / 'new'}"]
    with pytest.raises(ValueError, match=r"plain/model.ckpt \(differs from what the run wrote\)"):
        run_experiment(composed(*options))


DAMAGES = {
    "run.json": [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "command": 5, "started_in": []}', b"\xff\xfe"],
    "config.yaml": [b"", b"a: [", b"\x00", b"- 1\n"],
    "results.csv": [b"", b"method,seed\n", b"\xff"],
    "seed_0/data.npz": [b"", b"PK\x03\x04", b"\x93NUMPY"],
    "seed_0/reducr/csv/metrics.csv": [b"epoch,loss\n1,2\n", b"step,loss\nx,2\n", b"\xff\xfe,\n"],
    "seed_0/irreducible/stage.json": [b"", b"[]", b'{"format": 2}', b"{"],
    "seed_0/irreducible/table_plain/manifest.json": [b"", b"[]", b'{"format": 1}'],
    "seed_0/irreducible/table_plain/values.npy": [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"],
}
RAW = re.compile(r"^(Ran out of input|Error -\d|'\w+'$|.* is not in list|.*weights_only|.*object has no attribute)")


@pytest.mark.parametrize("file", DAMAGES)
def test_a_damaged_file_of_an_old_run_is_named(file, unfinished, copy_of, is_exhaustive):
    """Without a manifest, whoever reads the file must say what is wrong with it."""
    folder = copy_of(unfinished)
    (folder / "manifest.jsonl").unlink()
    start = json.loads((folder / "run.json").read_text()) | {"has_manifest": False}
    (folder / "run.json").write_text(json.dumps(start))
    for content in DAMAGES[file] if is_exhaustive else DAMAGES[file][-2:-1]:
        place = copy_of(folder)
        (place / file).write_bytes(content)
        with pytest.raises(ValueError) as error:  # noqa: PT011
            resume_run(place)
        assert any(name in str(error.value) for name in file.split("/")[-2:]), content
        assert not RAW.match(str(error.value)), content


def test_a_damaged_checkpoint_is_named_without_advice_to_lift_protection(finished, copy_of, tmp_path, is_exhaustive):
    folder = copy_of(finished)
    (folder / "manifest.jsonl").unlink()
    start = json.loads((folder / "run.json").read_text()) | {"has_manifest": False}
    (folder / "run.json").write_text(json.dumps(start))
    path = folder / "seed_0/reducr/checkpoints/last.ckpt"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    pickled = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R."
    for damaged in (b"", b"PK\x03\x04", content[:-200], flipped, pickled) if is_exhaustive else (flipped,):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last.ckpt is damaged: expected a checkpoint") as error:
            use(folder, tmp_path / str(len(damaged)))
        assert "weights_only" not in str(error.value)


# Changed inputs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(60):
            write(folder / label / f"{number}.png", draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return folder


@pytest.mark.parametrize("hold", ["memory", "stream"])
def test_changed_images_are_named(hold, images, tmp_path):
    data = tmp_path / "images"
    shutil.copytree(images, data)
    options = ["experiment=image_folder", "model=mlp", f"datamodule.data_dir={data}", f"datamodule.hold={hold}"]
    options += ["datamodule.image_size=8", "num_candidates=40", "compare=[uniform]", "num_steps=2"]
    folder = run_experiment(composed(*options, f"model_io.run_dir={tmp_path / 'run'}"))
    for path in data.rglob("*.png"):
        path.touch()  # another time, the same image
    resume_run(folder)
    replaced = sorted(data.rglob("*.png"))[:50]
    for number, path in enumerate(replaced):
        times = path.stat().st_mtime_ns
        write(path, np.full((8, 8, 3), number, dtype=np.uint8))
        os.utime(path, ns=(times, times))
    with pytest.raises(ValueError, match=r"The data has changed since the run: 50 of 120 inputs differ") as error:
        resume_run(folder)
    named = re.search(r"Changed files: (.*) and 47 more\.", str(error.value))[1].split(", ")
    assert {name.rsplit("/", 1)[-1] for name in named} <= {path.name for path in replaced}
    with pytest.raises(ValueError, match="50 of 120 inputs differ"):
        open_data(folder)


def test_a_changed_test_part_is_seen_too(tmp_path):
    lines = [f"{number % 2},{number},{number % 7}" for number in range(200)]
    for name, part in (("train", lines[:150]), ("test", lines[150:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["target,a,b", *part]) + "\n")
    options = ["experiment=table", "datamodule.train_file=train.csv", "datamodule.test_file=test.csv"]
    options += ["datamodule.target_column=target", "num_candidates=40", "num_steps=2", "compare=[uniform]", "seeds=[0]"]
    options += ["trainer.accelerator=cpu", "record.page=false", f"model_io.run_dir={tmp_path / 'run'}"]
    with contextlib.chdir(tmp_path), initialize_config_module("reducr.configs", version_base="1.3"):
        folder = run_experiment(compose("main", overrides=options))
    rewrite(tmp_path / "test.csv", "\n1,151,4\n", "\n1,151,5\n")
    with pytest.raises(ValueError, match=r"1 of 200 inputs differ from .*inputs.npz. Changed files: test.csv."):
        resume_run(folder)


# Moves and other environments


def test_a_moved_run_goes_on_with_data_elsewhere(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    lines = [f"{number % 2},{number},{number % 7}" for number in range(200)]
    (old / "train.csv").write_text("\n".join(["target,a,b", *lines]) + "\n")
    options = ["experiment=table", *(option for option in QUICK if not option.startswith("model."))]
    options += [
        "datamodule.train_file=train.csv",
        "datamodule.target_column=target",
        "num_candidates=40",
        "compare=[reducr]",
    ]
    with contextlib.chdir(old), initialize_config_module("reducr.configs", version_base="1.3"):
        config = compose("main", overrides=[*options, "model_io.run_dir=run"])
        whole = results(run_experiment(OmegaConf.merge(config, {"model_io": {"run_dir": "whole"}})))
        interrupt(config)
    new.mkdir()
    (old / "run").rename(new / "run")
    (new / "data").mkdir()
    (old / "train.csv").rename(new / "data" / "train.csv")
    shutil.rmtree(old)
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        resume_run(new / "run")
    resume_run(new / "run", ResumeOptions(data_dir=new / "data"))
    assert results(new / "run") == whole
    assert RunStart.read(new / "run").data_dir == new / "data"
    resume_run(new / "run")  # recorded
    export = export_run(new / "run", tmp_path / "export", ExportOptions(fraction=0.1, method="reducr"))
    assert export.num_chosen > 0


def test_another_environment_is_told(finished, copy_of, capsys):
    folder = copy_of(finished)
    start = json.loads((folder / "run.json").read_text())
    assert {"reducr", "torch", "numpy", "python", "num_threads"} <= start["environment"].keys()
    start["environment"] |= {"torch": "1.0", "num_threads": 96}
    (folder / "run.json").write_text(json.dumps(start))
    accept_changes(folder)
    resume_run(folder)
    told = capsys.readouterr().err
    assert "torch was 1.0 and is " in told
    assert "number of threads was 96 and is " in told
    assert "resumed" in json.loads((folder / "run.json").read_text())
    assert changed_files(folder) == []


def test_run_json_is_never_half_written(finished, copy_of):
    folder = copy_of(finished)
    inode = (folder / "run.json").stat().st_ino
    for number in range(3):
        add_to_start(folder, "data_dir", data_dir="x" * (3 - number))
        assert RunStart.read(folder).data_dir.name == "x" * (3 - number)
    assert (folder / "run.json").stat().st_ino == inode  # a lock is held on it
    assert changed_files(folder) == []


# No room


def test_a_full_disk_is_told_with_the_file_and_how_to_go_on(finished, tmp_path):
    size = min(path.stat().st_size for path in finished.rglob("last.ckpt")) - 4000
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal of a file that is too large
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=r"There is no room to write \S*uniform/checkpoints/\S*\.ckpt") as error:
            run_experiment(composed(f"model_io.run_dir={run}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value).endswith(f".ckpt (File too large). Free some, and `reducr resume {run}` goes on.")
    resume_run(run)
    assert results(run) == results(finished)
