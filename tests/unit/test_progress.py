import io
import time

import pytest
from rich.console import Console

from reducr.pipeline.progress import RunDisplay


@pytest.fixture
def display():
    with RunDisplay(2, console=Console(file=io.StringIO(), width=120)) as display:
        yield display


def run_task(display):
    return next(task for task in display._progress.tasks if task.description == "run")


def test_the_bar_of_the_run_counts_the_steps_of_methods(display):
    display.begin("seed 0: reference model plain", 30)
    display.advance(30, None)
    assert run_task(display).completed == 0  # of no method
    display.begin("seed 0: reducr", 100, group_names=["a", "b"])
    display.advance(25, None)
    time.sleep(0.3)  # four times a second is enough
    display.advance(50, None)
    assert run_task(display).completed == 0.5
    display.finish("seed 0  reducr")
    assert run_task(display).completed == 1
    assert run_task(display).total == 2
    assert display.console.file.getvalue().strip() == "seed 0  reducr"


def test_the_line_shows_the_worst_group_and_the_largest_weights(display):
    names = ["plane", "a class with a long name", "ship", "cat"]
    display.begin("seed 0: reducr", 3, group_names=names)
    display.advance(1, 0.5)
    assert display.note == "worst group (holdout) 0.500, best so far 0.500"
    display.show_weights([0.1, 0.4, 0.2, 0.3])
    display.advance(2, 0.61234)
    display.advance(3, 0.55)
    assert display.note == (
        "worst group (holdout) 0.550, best so far 0.612 · largest weights: a class with a l 0.40, cat 0.30, ship 0.20"
    )
    display.show_weights([0.25] * 4)
    display.advance(3, 0.55)
    assert display.note == "worst group (holdout) 0.550, best so far 0.612"
    display.begin("seed 1: uniform", 3, group_names=names)
    assert display.note == ""
