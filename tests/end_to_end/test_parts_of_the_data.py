"""Which part of the data may decide what: whole runs in which a part changes that must not matter."""

import hydra
import numpy as np
import pytest
import torch

from reducr._internal.run_folder import read_results
from reducr.pipeline import run_experiment

OPTIONS = [
    "num_steps=24",
    "holdout.refresh_steps=3",
    "irreducible.num_epochs=3",
    "irreducible.checkpoint_rule=lowest_loss",
    "seeds=[0]",
    "trainer.accelerator=cpu",
    "record.page=false",
    "compare=[reducr,irreducible_model]",
    "methods.reducr.options.step_size=0.05",
]


def run(folder, *options):
    """The folder of the seed, and the rows of the results."""
    with hydra.initialize_config_module("reducr.configs", version_base="1.3"):
        config = hydra.compose("main", overrides=[*OPTIONS, *options, f"model_io.run_dir={folder}"])
    run_experiment(config)
    return folder / "seed_0", read_results(folder)


def state_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def selected_in(folder):
    with np.load(folder / "reducr" / "selected.npz") as arrays:
        return {name: arrays[name] for name in arrays}


@pytest.mark.parametrize("irreducible", ["adjusted", "trained"])
def test_test_labels_decide_nothing_but_test_accuracies(irreducible, tmp_path):
    """Not the weights of the groups, not a checkpoint of any rule, not the reference model."""
    options = [f"irreducible={irreducible}", "record.test_accuracy=true"]
    clean, rows = run(tmp_path / "clean", *options)
    noisy, noisy_rows = run(tmp_path / "noisy", *options, "datamodule.label_noise.test=0.7")
    checkpoints = sorted(path.relative_to(clean) for path in clean.rglob("*.ckpt"))
    assert {path.stem for path in checkpoints} >= {"last", "best_worst_group", "best_mean", "model"}
    for path in checkpoints:
        assert_equal_states(state_of(clean / path), state_of(noisy / path))
    one, other = selected_in(clean), selected_in(noisy)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    for row, noisy_row in zip(rows, noisy_rows, strict=True):
        assert row.mean_accuracy > noisy_row.mean_accuracy + 0.2


def test_validations_leave_a_moving_holdout_loss_alone(tmp_path):
    """It follows one holdout mini-batch per step; a validation chooses checkpoints and nothing else."""
    options = ["holdout.decay=0.9", "holdout.batch_size=20"]
    folders = [run(tmp_path / str(steps), *options, f"holdout.refresh_steps={steps}")[0] for steps in (3, 24)]
    often, once = (state_of(folder / "reducr" / "checkpoints" / "last.ckpt") for folder in folders)
    for state in (often, once):  # the sums of the last validation
        for name in [name for name in state if name.startswith("holdout_loss.")]:
            del state[name]
    assert_equal_states(often, once)
    weights = torch.softmax(-0.05 * often["selector.weighting.cumulative_payoff"], dim=0)
    assert float(weights.max()) > 0.11
    for name, values in selected_in(folders[0]).items():
        np.testing.assert_array_equal(values, selected_in(folders[1])[name])
