"""Selectors that installed packages register under the entry-point group ``reducr.selectors``."""

import os
import subprocess
import sys

import pytest

import reducr
from reducr.selectors.registry import SelectorRegistry

MODULE = '''
import reducr
from reducr.functional import top_k


class Margin(reducr.Selector):
    """Minus the gap between the two largest logits."""

    name = "margin"
    needs = frozenset({"logits"})

    def __init__(self, *, num_groups, scale=1.0, sampler=None, **sampler_options):
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        self.scale = scale

    def score(self, candidates, *, generator):
        largest = candidates.logits.topk(2, dim=1).values
        return self.scale * (largest[:, 1] - largest[:, 0])
'''
PROGRAM = """
import sys

import torch

import reducr

assert "margin_rule" not in sys.modules
assert "margin" in reducr.SELECTORS
assert "margin" in list(reducr.SELECTORS)
assert len(reducr.SELECTORS) == len(list(reducr.SELECTORS))
for name in ("margim", "uniforn"):
    try:
        reducr.make_selector(name, num_groups=2)
    except ValueError as error:
        print(error)
assert reducr.make_selector("uniform", num_groups=2).name == "uniform"
assert "margin_rule" not in sys.modules

selector = reducr.make_selector("margin", num_groups=2, scale=2.0)
assert "margin_rule" in sys.modules
assert dict(reducr.SELECTORS.items())["margin"] is type(selector) is reducr.SELECTORS["margin"]
logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.5, 0.25], [5.0, 0.0, 0.0]])
print(selector.select(reducr.Candidates(logits=logits), num_selected=2))
try:
    reducr.make_selector("margin", num_groups=2, scael=1.0)
except ValueError as error:
    print(error)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that lays out a package on ``sys.path`` as pip would, and returns the registry that then results."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package, entries, modules=()):
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("[reducr.selectors]\n" + "".join(lines))
        for name, source in dict(modules).items():
            (tmp_path / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        return SelectorRegistry([reducr.SELECTORS["uniform"], reducr.SELECTORS["reducr"]])

    return install


def test_an_installed_package_adds_a_selector_without_being_imported(install, tmp_path):
    install("reducr-margin", {"margin": "margin_rule:Margin"}, {"margin_rule": MODULE})
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    unknown, also_unknown, selection, option = run.stdout.splitlines()
    assert unknown.startswith("unknown selector 'margim'. Did you mean 'margin'")
    assert ", margin, " in also_unknown
    assert "positions=tensor([1, 0])" in selection
    assert "unknown option 'scael' of selector 'margin' with sampler 'top_k'. Did you mean 'scale'" in option


def test_a_registry_is_a_mapping(install):
    registry = install("reducr-margin", {"margin": "margin_mapping:Margin"}, {"margin_mapping": MODULE})
    assert list(registry) == ["uniform", "reducr", "margin"]
    assert len(registry) == 3
    assert "margin" in registry
    assert "rho_loss" not in registry
    assert registry.get("rho_loss") is None
    assert "margin_mapping" not in sys.modules
    assert [(name, selector.name) for name, selector in registry.items()] == [(name, name) for name in registry]
    assert repr(registry) == "SelectorRegistry(uniform, reducr, margin)"
    with pytest.raises(KeyError, match="rho_loss"):
        registry["rho_loss"]


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        (
            "import a_missing_library",
            "broken_rule:Margin",
            "cannot be imported: ModuleNotFoundError: No module named 'a_missing_library'",
        ),
        ("1 / 0", "broken_rule:Margin", "cannot be imported: ZeroDivisionError: division by zero"),
        (MODULE, "broken_rule:Margim", "cannot be imported: AttributeError: "),
        (MODULE, "broken_rule:top_k", "must be a subclass of reducr.Selector; got <function top_k"),
        (MODULE.replace('name = "margin"', ""), "broken_rule:Margin", "calls itself None"),
        (MODULE.replace('"margin"', '"gap"'), "broken_rule:Margin", "calls itself 'gap'. Set `name = 'margin'`"),
    ],
)
def test_a_broken_package_is_named_when_its_selector_is_looked_up(source, value, message, install):
    registry = install("reducr-margin", {"margin": value}, {"broken_rule": source})
    assert "margin" in registry
    assert registry["uniform"].name == "uniform"
    with pytest.raises(ValueError, match="Selector 'margin' of package 'reducr-margin'") as error:
        registry["margin"]
    assert f"({value})" in str(error.value)
    assert message in str(error.value)


def test_a_name_that_is_taken_is_refused(install):
    registry = install("reducr-copy", {"reducr": "margin_rule:Margin"})
    assert len(registry) == len(list(registry)) == 2
    assert registry["uniform"].name == "uniform"
    with pytest.raises(ValueError, match=r"'reducr' is registered twice: by reducr and by package 'reducr-copy'"):
        registry["reducr"]


def test_two_packages_cannot_share_a_name(install):
    install("reducr-one", {"margin": "one:Margin"})
    registry = install("reducr-two", {"margin": "two:Margin"})
    with pytest.raises(ValueError, match="registered twice") as error:
        registry["margin"]
    assert "package 'reducr-one' (one:Margin)" in str(error.value)
    assert "package 'reducr-two' (two:Margin)" in str(error.value)
