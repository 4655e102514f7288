"""Everything a user can get wrong in a configuration is told before the first step, and before a file is written."""

import pytest
from hydra import compose, initialize_config_module

from reducr.pipeline import run_experiment

QUICK = ["num_steps=4", "seeds=[0]", "irreducible.num_epochs=1"]


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=list(overrides))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fraction=0"], "fraction must be in (0, 1]"),
        (["fraction=10"], "For 10 percent give 0.1"),
        (["num_candidates=5000"], "the training part has"),
        (["compare=[reducr,rho_los]"], "unknown method 'rho_los'. Did you mean 'rho_loss'"),
        (["scoring_mode=evaluate"], "unknown scoring_mode 'evaluate'"),
        (["methods.reducr.options.holdout_weighting=per_points"], "Did you mean 'per_point'"),
        (["+methods.reducr.options.step_sizes=1"], "Did you mean 'step_size'"),
        (["methods.reducr.options.step_size=-1"], "step_size must be a finite number of at least 0; got -1"),
        (["datamodule.holdout_size=5"], "at least one point of each of the 10 classes"),
        (["model=small_cnn"], "cannot be run on inputs of shape (4, 64)"),
        (["compare=[bald]"], "MC-dropout needs a model with dropout"),
        (["experiment=fashion_mnist", "datamodule.data_dir=nowhere"], "is missing; looked in nowhere/FashionMNIST/raw"),
        (["experiment=fashion_mnist"], "needs datamodule.data_dir=DIR"),
        (["seeds=[0,0]"], "each once; got [0, 0]"),
        (["irreducible.gradient_weight=0.5"], "gradient_weight must be a finite number of at least 1"),
        (["irreducible.weight_normalisation=sum"], "unknown irreducible.weight_normalisation 'sum'"),
        (["holdout.decay=1.5"], "holdout.decay must be in (0, 1)"),
        (["trainer.devices=2"], "this version trains in one process"),
        (["methods.reducr.train_on=train_and_holdout"], "a table has rows for the training part only"),
        (["methods.uniform.train_on=all"], "unknown methods.uniform.train_on 'all'"),
        (["gradient_weighted_class=3"], "is an option of `reducr irreducible`"),
        (["+trainer.max_steps=5"], "trainer.max_steps is set by this program: use num_steps"),
        (["num_steps=0"], "num_steps must be a whole number of at least 1; got 0"),
        (["irreducible.dir=nowhere", "seed=0"], "is not a finished irreducible stage"),
    ],
)
def test_a_users_fault_is_told_before_anything_is_written(arguments, message, tmp_path):
    config = composed(*QUICK, *arguments, f"model_io.home_dir={tmp_path / 'runs'}")
    with pytest.raises((ValueError, FileNotFoundError)) as fault:
        run_experiment(config)
    assert message in str(fault.value)
    assert not (tmp_path / "runs").exists()
