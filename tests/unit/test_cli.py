import sys

import pytest

from reducr.cli import main


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("datamodule.data_dir=étiquette", """'OPTION="VALUE"', 'OPTION=["VALUE","VALUE"]'\n"""),
        ("datamodule.data_dir=a[1].csv", """into single quotes: 'OPTION="VALUE"'"""),
        (
            "datamodule.imbalance.train={kind:long_tail,ratio:3}",
            "To replace it, put datamodule.imbalance.train=null before it.\n",
        ),
        ("datamodule.imbalence.train={kind:long_tail}", "Did you mean datamodule.imbalance.train or"),
        ("holdout.refresh_step=3", "Did you mean holdout.refresh_steps"),
        ("zzz_zzz=3", "`reducr run experiment=NAME --cfg job` shows all options.\n"),
        # an option of the default experiment, but not of this one
        ("datamodule.test_size=3", "`reducr run experiment=NAME --cfg job` shows all options.\n"),
    ],
)
def test_hydras_errors_come_with_advice(argument, advice, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reducr"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "experiment=qqp_uniform", argument])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("reducr: ")
    assert advice in errors
    assert f"Did you mean {argument.partition('=')[0]} " not in errors


def test_null_makes_room_for_another_kind_of_imbalance():
    from hydra import compose, initialize_config_module

    name = "datamodule.imbalance.train"
    with initialize_config_module("reducr.configs", version_base="1.3"):
        config = compose("main", ["experiment=qqp_uniform", f"{name}=null", f"{name}={{kind:long_tail,ratio:3}}"])
    assert dict(config.datamodule.imbalance.train) == {"kind": "long_tail", "ratio": 3}


def test_without_hydra_help_works_and_other_commands_name_the_extra(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reducr"])
    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "reducr: hydra is not installed. Install it with: pip install 'reducr[train]'\n"
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "reducr run experiment=NAME" in capsys.readouterr().out
