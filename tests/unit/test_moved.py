import importlib.util

import pytest

from reducr._internal.moved import MOVED, current_path, with_current_targets


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_every_old_path_is_gone_and_every_new_one_is_there(old, new):
    assert importlib.util.find_spec(new) is not None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{old}.x")
    assert current_path(old) == current_path(new) == new


def test_only_whole_parts_of_a_path_are_moved():
    assert current_path("reducr.data.digits2.Digits") == "reducr.data.digits2.Digits"
    assert current_path("mine.reducr.data.digits.Digits") == "mine.reducr.data.digits.Digits"
    assert current_path("reducr.integrations.lightning.CSVMetrics") == "reducr.lightning.CSVMetrics"


def test_targets_are_renamed_at_any_depth_and_nothing_else_is():
    node = {
        "_target_": "reducr.data.cifar.CIFAR10",
        "name": "reducr.data.cifar.CIFAR10",
        "preprocess": {"_target_": "reducr.models.MLP", "sizes": [1, {"_target_": "reducr.data.transforms.Augment"}]},
        3: None,
    }
    with pytest.warns(FutureWarning) as warned:
        renamed = with_current_targets(node)
    assert renamed == {
        "_target_": "reducr.data.published.cifar.CIFAR10",
        "name": "reducr.data.cifar.CIFAR10",
        "preprocess": {
            "_target_": "reducr.models.MLP",
            "sizes": [1, {"_target_": "reducr.data.core.transforms.Augment"}],
        },
        3: None,
    }
    assert node["_target_"] == "reducr.data.cifar.CIFAR10"
    assert sorted(str(warning.message).partition(".")[0] for warning in warned) == ["`_target_: reducr"] * 2
    assert "`_target_: reducr.data.published.cifar.CIFAR10`" in str(warned[1].message)
