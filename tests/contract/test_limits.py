"""Sizes that keep the code readable: of files, functions and signatures."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "reducr"
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 10
PATHS = sorted(SOURCE.rglob("*.py"))


def functions(path):
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(function):
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MAX_FUNCTION, f"{function.name} has {lines} lines"
        names = parameters(function)
        assert len(names) <= MAX_PARAMETERS, f"{function.name} has {len(names)} parameters"
