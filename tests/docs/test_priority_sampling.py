"""Priority sampling in a loop of one's own: the example, its section in docs/loops.md, and the table of options."""

import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import forked
from reducr.pipeline.config import Config

ROOT = Path(__file__).parents[2]
NO_SELECTION = {
    "datamodule", "model", "optimizer", "trainer", "logger", "callbacks", "seeds", "selection_method", "seed",
    "gradient_weighted_class", "record", "model_io", "name", "irreducible", "methods", "compare",
}  # fmt: skip
"""Options of the program that are of its data, models and files, and not of a selection; irreducible is a section."""


def section(title):
    return (ROOT / "docs/loops.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.long
def test_holdout_examples_are_worth_more_than_the_rule_alone():
    done = forked.run(["-W", "error", ROOT / "examples/priority_sampling.py"])
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(.+?) +worst class (\d\.\d+)  mean (\d\.\d+)$", done.stdout, flags=re.MULTILINE)
    worst, mean = ({row: float(values[place]) for row, *values in rows} for place in (0, 1))
    assert list(worst) == [
        "reference", "class_balanced", "priority_sampling", "with holdout examples", "and a warm start",
    ]  # fmt: skip
    assert mean["priority_sampling"] > mean["class_balanced"]
    assert min(worst["with holdout examples"], worst["and a warm start"]) > worst["class_balanced"] + 0.2
    assert "1440 of 21120 candidates selected" in done.stdout  # 7 of 100, and 2 of the last 28


def test_the_code_in_loops_runs_after_the_readmes():
    (readme,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    code, with_belief = re.findall(r"```python\n(.*?)```", section("Priority sampling"), flags=re.DOTALL)
    names = {}
    exec(readme, names)
    exec(code, names)
    report = names["loader"].report()
    assert (report.num_batches, report.num_selected) == (10, 9 * 24 + 1)
    assert len(names["targets"]) == 2  # of the last 20 candidates, one of them from the holdout set
    exec(with_belief, names)
    for inputs, targets in names["loader"]:
        assert inputs.shape == (len(targets), 20)
        names["model"](inputs).sum().backward()
    assert names["belief"].filter != "none"  # 20 % of the labels are wrong


def options(config=Config, prefix=""):
    types = typing.get_type_hints(config)
    for option in fields(config):
        if not prefix and option.name in NO_SELECTION:
            continue
        if is_dataclass(types[option.name]):
            yield from options(types[option.name], f"{prefix}{option.name}.")
        else:
            yield f"{prefix}{option.name}"


@pytest.mark.parametrize("option", [*options(), "irreducible.update_rate"])
def test_every_option_of_a_selection_is_in_the_table(option):
    assert f"`{option}`" in section("The training program's options in a loop of yours")
