"""What a target model begins with, and what it learns beside the selected points: whole runs on real data."""

import csv
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch

from reducr.pipeline import run_experiment

OPTIONS = [
    "num_steps=12",
    "holdout.refresh_steps=6",
    "irreducible.num_epochs=2",
    "seeds=[0]",
    "trainer.accelerator=cpu",
]


def run(folder, *options):
    with hydra.initialize_config_module("reducr.configs", version_base="1.3"):
        config = hydra.compose("main", overrides=[*OPTIONS, f"model_io.run_dir={folder}", *options])
    run_experiment(config)
    with (folder / "results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["checkpoint_rule"] == "last"}
    return rows, folder / "seed_0"


def parameters(seed_folder, method):
    state = torch.load(seed_folder / method / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("model.")}


def test_a_warm_start_is_the_irreducible_model(tmp_path):
    """Without learning the target model stays what it began with."""
    rows, folder = run(
        tmp_path / "run",
        "optimizer@irreducible.optimizer=adamw",
        "optimizer.lr=0",
        "optimizer.weight_decay=0",
        "compare=[irreducible_model,uniform,reducr]",
        "+methods.uniform.warm_start=true",
        "+methods.reducr.warm_start=true",
    )
    state = torch.load(folder / "irreducible" / "plain" / "model.ckpt", weights_only=True)["state_dict"]
    for method in ("uniform", "reducr"):
        trained = parameters(folder, method)
        assert trained.keys() == {name for name in state if name.startswith("model.")}
        assert all(torch.equal(value, state[name]) for name, value in trained.items())
        assert rows[method]["mean_accuracy"] == rows["irreducible_model"]["mean_accuracy"]
        assert float(rows[method]["irreducible_seconds"]) >= float(rows["irreducible_model"]["irreducible_seconds"]) > 0


@pytest.mark.long
def test_a_quarter_of_each_step_from_the_holdout_part(tmp_path):
    rows, folder = run(
        tmp_path / "run", "compare=[uniform,reducr]", "holdout_fraction=0.2", "+methods.uniform.holdout_fraction=0"
    )
    assert (rows["uniform"]["selected_fraction"], rows["reducr"]["selected_fraction"]) == ("0.1", "0.08")
    for method, size in (("uniform", 10), ("reducr", 8)):
        with np.load(folder / method / "selected.npz") as selected:
            assert selected["index"].shape == (12, size)
    # with one selected point a step and nine of the holdout part, it learns what that part teaches
    options = ["compare=[uniform]", "num_steps=150", "holdout.refresh_steps=75", "datamodule.label_noise.train=0.9"]
    mostly, none = (run(tmp_path / str(share), *options, f"holdout_fraction={share}")[0] for share in (0.9, 0))
    assert float(mostly["uniform"]["mean_accuracy"]) > float(none["uniform"]["mean_accuracy"]) + 0.3


def selected_in(folder):
    with np.load(folder / "reducr" / "selected.npz") as selected:
        return selected["index"]


@pytest.mark.long
def test_the_update_rate_slows_the_learning_of_the_reference(tmp_path):
    """At a rate of next to nothing the reference stays as it was."""
    options = ["compare=[reducr]", "irreducible.lookup=live"]
    rates = {"none": [], "tiny": ["irreducible.update_rate=1e-12"], "full": ["irreducible.update_rate=1"]}
    index = {name: selected_in(run(tmp_path / name, *options, *rate)[1]) for name, rate in rates.items()}
    np.testing.assert_array_equal(index["tiny"], index["none"])
    assert not np.array_equal(index["full"], index["none"])


class Zeros(torch.nn.Module):
    """An augmentation that leaves nothing of the inputs."""

    def forward(self, inputs):
        return torch.zeros_like(inputs)


def test_examples_of_the_holdout_part_are_augmented_as_the_candidates_are(tmp_path, monkeypatch):
    """From inputs of zeros the first layer learns nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = ["compare=[uniform]", "holdout_fraction=0.5", "optimizer.weight_decay=0"]
    options += ["+datamodule.augment._target_=test_beside_selection.Zeros"]
    folders = [run(tmp_path / name, *options, *more)[1] for name, more in (("none", ["optimizer.lr=0"]), ("some", []))]
    before, after = (parameters(folder, "uniform") for folder in folders)
    first, *_ = [name for name in before if name.endswith("weight")]
    *_, last = [name for name in before if name.endswith("bias")]
    assert torch.equal(before[first], after[first])
    assert not torch.equal(before[last], after[last])
