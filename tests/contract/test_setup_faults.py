"""Every fault in a configuration is an error before the first step, and before a file is written."""

import re

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from reducr.cli import main
from reducr.pipeline import run_experiment
from reducr.pipeline.config import checked_config

QUICK = ["num_steps=4", "seeds=[0]", "irreducible.num_epochs=1"]


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=list(overrides))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=null"], "torch.optim.AdamW does not take the options of `optimizer`: "),
        (["optimizer.lr=fast"], "torch.optim.AdamW does not take the options of `optimizer`: "),
        (["fraction=0"], "`fraction` must be in (0, 1]"),
        (["fraction=10"], "For 10 percent, pass 0.1"),
        (["num_candidates=5000"], "the training part has"),
        (
            ["methods.uniform.train_on=holdout", "num_candidates=120"],
            "num_candidates=120, but the holdout part has 100 examples",
        ),
        (["compare=[reducr,rho_los]"], "unknown method 'rho_los'. Did you mean 'rho_loss'"),
        (["scoring_mode=evaluate"], "unknown scoring_mode 'evaluate'"),
        (["scoring.budget=0.05"], "A scoring budget of 0.05 of the candidates cannot select 0.1 of them"),
        (["scoring.budget=40"], "The fraction of a scoring budget must be in (0, 1]"),
        (
            ["scoring.oldest_fraction=0.2"],
            "scoring.oldest_fraction=0.2 is a fraction of `scoring.budget`, which is null. Set both.",
        ),
        (["compare=[uniform,entropy]", "scoring.budget=0.4"], "serves rules that score each example by its model loss"),
        (["scoring.autocast=bf16"], "unknown scoring.autocast 'bf16'. Did you mean 'bfloat16' or 'float16'?"),
        (["scoring.resolution=0.5"], "A scoring resolution of 0.5 needs images (B, K, H, W) as inputs; got (4, 64)."),
        (["methods.reducr.options.holdout_weighting=per_points"], "Did you mean 'per_point'"),
        (["+methods.reducr.options.step_sizes=1"], "Did you mean 'step_size'"),
        (["methods.reducr.options.step_size=-1"], "step_size must be a finite number of at least 0; got -1"),
        (["methods.reducr.options.payoff_decay=0"], "payoff_decay must be in (0, 1]"),
        (["datamodule.holdout_size=5"], "at least one example of each of the 10 classes"),
        (["model=small_cnn"], "cannot be run on inputs of shape (4, 64)"),
        (["compare=[bald]"], "MC-dropout needs a model with dropout"),
        (["compare=[divbs]", "scoring.compile=true"], "which a compiled model hides. Use `compile=False`"),
        (
            ["compare=[infobatch]", "methods.infobatch.options.prune_probability=1"],
            "prune_probability must be in [0, 1)",
        ),
        (
            ["experiment=fashion_mnist", "datamodule.data_dir=nowhere"],
            "(or .gz) in nowhere/FashionMNIST/raw or nowhere. Set",
        ),
        (["experiment=fashion_mnist"], "needs `datamodule.data_dir=DIR`"),
        (["seeds=[0,0]"], "each once; got [0, 0]"),
        (["irreducible.gradient_weight=0.5"], "gradient_weight must be a finite number of at least 1"),
        (["irreducible.weight_normalisation=sum"], "unknown irreducible.weight_normalisation 'sum'"),
        (["holdout.decay=1.5"], "holdout.decay must be in (0, 1)"),
        (["trainer.devices=2"], "trainer.devices and trainer.num_nodes are set by this program"),
        (["methods.reducr.train_on=train_and_holdout"], "a table has rows for the training part only"),
        (
            [
                "methods.rho_loss.train_on=holdout",
                "irreducible.trained_on=cross_fit",
                "irreducible.lookup=live",
                "compare=[rho_loss]",
            ],
            "methods.rho_loss.train_on=holdout with a rule that needs irreducible losses: cross-fitted models give",
        ),
        (
            ["methods.reducr.train_on=train_and_holdout", "irreducible.trained_on=cross_fit", "compare=[reducr]"],
            "cross-fitted models give losses for the training part only",
        ),
        (
            ["+augment@datamodule.augment=flip"],
            "datamodule.augment (Augment) cannot be run on inputs of shape (4, 64) and type torch.float32: images must",
        ),
        (["methods.uniform.train_on=all"], "unknown methods.uniform.train_on 'all'"),
        (["gradient_weighted_class=3"], "is an option of `reducr irreducible`"),
        (["+trainer.max_steps=5"], "trainer.max_steps is set by this program: use num_steps"),
        (
            ["+trainer.callbacks=[]"],
            "trainer.callbacks is set by this program: use callbacks, for example",
        ),
        (["+callbacks.mine=early"], "callbacks.mine must have a _target_, the class of a Lightning callback; got"),
        (["+callbacks.mine={_target_:torch.nn.ReLU}"], "must be a Lightning callback; torch.nn.ReLU made a ReLU."),
        (["+num_step=5"], "There is no option num_step. Did you mean num_steps"),
        (["+holdout.decays=0.5"], "There is no option holdout.decays. Did you mean holdout.decay"),
        (["model_io.resume_seconds=-1"], "model_io.resume_seconds must be a number of at least 0; got -1."),
        (["holdout.refresh_steps=0"], "holdout.refresh_steps must be at least 1, or null; got 0."),
        (["num_steps=0"], "num_steps must be a whole number of at least 1; got 0"),
        (["irreducible.dir=nowhere", "seed=0"], "is not a finished irreducible stage"),
        (["irreducible.kind=ensembles"], "unknown irreducible.kind 'ensembles'. Did you mean 'ensemble'"),
        (["irreducible.trained_on=halves"], "unknown irreducible.trained_on 'halves'"),
        (
            ["irreducible.trained_on=cross_fit"],
            "'irreducible_model' tests the reference model trained on the",
        ),
        (["irreducible.update_rate=0.01"], "cannot be in a table"),
        (["irreducible.update_rate=2", "irreducible.lookup=live"], "irreducible.update_rate must be in (0, 1]"),
        (
            ["irreducible.update_rate=0.01", "irreducible.lookup=live", "irreducible.trained_on=cross_fit"],
            "would see each other's half",
        ),
        (
            ["model@proxy.model=small_cnn"],
            "proxy.model (reducr.models.SmallCNN) cannot be run on inputs of shape (4, 64)",
        ),
        (["model@irreducible.model=small_cnn"], "Choose a model for this data with `model@irreducible.model=NAME`"),
        (
            ["model@proxy.model=mlp", "+trainer.gradient_clip_val=1"],
            "would clip the gradients of the target model together with",
        ),
        (["datamodule.label_noise.train={kind:unifrom,fraction:0.1}"], "Did you mean 'uniform'"),
        (
            ["datamodule.imbalance.train=0.1"],
            "most frequent class to the rarest, must be at least 1; got 0.1",
        ),
        (["holdout_fraction=1"], "holdout_fraction must be in [0, 1)"),
        (["holdout_fraction=0.01"], "holdout_fraction=0.01 of 'uniform' draws 0 of the 10 examples per step"),
        (
            ["holdout_fraction=0.96"],
            "draws 10 of the 10 examples per step from the holdout part, so none would be",
        ),
        (
            ["+methods.reducr.warm_strat=true"],
            "unknown option 'warm_strat' of method 'reducr'. Did you mean 'warm_start'",
        ),
        (
            ["warm_start=true", "model@irreducible.model=mlp", "irreducible.model.hidden_sizes=[8]"],
            "layers.0.weight is (8, 64)",
        ),
        (
            ["holdout_fraction=0.2", "distributed=local"],
            "works in one process only. Leave distributed=local out",
        ),
        (["warm_start=true", "irreducible.trained_on=cross_fit", "compare=[reducr]"], "cross-fitting trains two"),
        (["datamodule.input_noise.train=0.1"], "datamodule.input_noise.train"),
    ],
)
def test_a_fault_is_an_error_before_anything_is_written(arguments, message, tmp_path):
    config = composed(*QUICK, *arguments, f"model_io.home_dir={tmp_path / 'runs'}")
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as fault:
        run_experiment(config)
    assert message in str(fault.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": "many"}, "num_steps must be a whole number; got 'many'."),
        ({"num_candidates": 3.5}, "num_candidates must be a whole number; got 3.5."),
        ({"num_steps": True}, "num_steps must be a whole number; got True."),
        ({"seeds": [0, "x"]}, "seeds[1] must be a whole number; got 'x'."),
        ({"seeds": 3}, "seeds must be a list of whole numbers; got 3."),
        ({"scoring": {"compile": "yes please"}}, "scoring.compile must be true or false; got 'yes please'."),
        ({"scoring": {"budget": "half"}}, "scoring.budget must be a number or null; got 'half'."),
        ({"irreducible": True}, "irreducible must be a mapping of options; got True."),
        ({"irreducible": {"trained_on": []}}, "irreducible.trained_on must be text; got []."),
        ({"holdout": None}, "holdout must be a mapping of options; got None."),
        ({"gradient_weighted_class": 1.5}, "gradient_weighted_class must be a whole number or text or null; got 1.5."),
        (
            {"datamodule": {"data_dir": "???"}},
            "datamodule.data_dir has no value yet: give `datamodule.data_dir=",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_type(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked_config(OmegaConf.create(options))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_steps=many", "reducr: num_steps must be a whole number; got 'many'.\n"),
        ("scoring.compile=yes please", "reducr: scoring.compile must be true or false; got 'yes please'.\n"),
        ("experiment=wrong", "reducr: In experiment/wrong: num_steps must be a whole number; got 'many'.\n"),
        ("experiment=typo", "reducr: In experiment/typo: There is no option num_step. Did you mean num_steps? `reducr"),
    ],
)
def test_the_command_line_shows_these_errors(argument, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "experiment").mkdir()
    for name, option in {"wrong": "num_steps: many", "typo": "num_step: 3"}.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{option}\n")
    monkeypatch.setattr("sys.argv", ["reducr"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--config-dir", str(tmp_path), argument])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(message)
