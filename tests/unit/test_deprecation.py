"""Old names keep working, with a warning at the line that uses them."""

import inspect
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import reducr
from reducr import functional
from reducr._internal.deprecation import module_getattr, renamed_attribute, renamed_parameters, warn_renamed


class Model:
    size = renamed_attribute("size", "width", removed_in="0.3.0")
    measure = renamed_attribute("measure", "area", removed_in="0.3.0")

    def __init__(self):
        self.width = 3

    def area(self):
        return self.width**2


@renamed_parameters({"points": "examples", "share": "fraction"}, removed_in="0.3.0")
def choose(examples, *, fraction=1.0):
    """Return its arguments."""
    return examples, fraction


def test_the_warning_names_both_names_and_the_version_and_points_at_the_caller():
    def old():
        warn_renamed("old", "new", removed_in="0.3.0")

    with pytest.warns(FutureWarning) as caught:
        old()
    message = "`old` was renamed to `new`. The old name will be removed in reducr 0.3.0."
    assert [str(warning.message) for warning in caught] == [message]
    assert caught[0].filename == __file__


def test_each_call_site_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            choose(points=1)
        choose(points=2)
    assert len(caught) == 2
    assert {warning.filename for warning in caught} == {__file__}


def test_a_renamed_attribute_is_read_written_and_called():
    model = Model()
    with pytest.warns(FutureWarning, match="`size` was renamed to `width`") as caught:
        assert model.size == 3
    assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="`size` was renamed to `width`"):
        model.size = 4
    assert model.width == 4
    with pytest.warns(FutureWarning, match="`measure` was renamed to `area`"):
        assert model.measure() == 16


def test_renamed_parameters():
    assert choose([1], fraction=0.5) == ([1], 0.5)
    with pytest.warns(FutureWarning, match="`points` was renamed to `examples`"):
        assert choose(points=[1], fraction=0.5) == ([1], 0.5)
    with pytest.warns(FutureWarning, match="`share` was renamed to `fraction`"):
        assert choose([1], share=0.25) == ([1], 0.25)
    with pytest.raises(TypeError, match=re.escape("choose() got both `share` and its new name `fraction`.")):
        choose([1], share=0.25, fraction=0.5)
    assert list(inspect.signature(choose).parameters) == ["examples", "fraction"]
    assert choose.__doc__ == "Return its arguments."


def test_a_module_answers_old_names(monkeypatch):
    module = types.ModuleType("renamed_module")
    module.new, module.__getattr__ = 1, module_getattr("renamed_module", {"old": "new"}, removed_in="0.3.0")
    monkeypatch.setitem(sys.modules, "renamed_module", module)
    with pytest.warns(FutureWarning, match=r"`renamed_module\.old` was renamed to `renamed_module\.new`") as caught:
        assert module.old == 1
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="module 'renamed_module' has no attribute 'other'"):
        _ = module.other


def test_functional_answers_the_old_name_of_the_cross_entropy():
    logits, targets = torch.zeros(2, 4), torch.tensor([0, 3])
    with pytest.warns(FutureWarning, match=r"renamed to `reducr\.functional\.per_example_cross_entropy`") as caught:
        loss = functional.point_cross_entropy(logits, targets)
    assert caught[0].filename == __file__
    assert torch.equal(loss, functional.per_example_cross_entropy(logits, targets))
    assert "point_cross_entropy" not in functional.__all__


def test_no_old_name_outlives_its_version():
    current = tuple(int(part) for part in re.findall(r"\d+", reducr.__version__)[:3])
    sources = [path.read_text() for path in Path(reducr.__file__).parent.rglob("*.py")]
    versions = [version for source in sources for version in re.findall(r'removed_in="([\d.]+)"', source)]
    assert versions
    for version in versions:
        assert tuple(map(int, version.split("."))) > current, f"remove the names that go in {version}"
