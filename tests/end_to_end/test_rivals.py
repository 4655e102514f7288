"""The trials of the recipe and its rivals."""

import json
import re
from importlib.util import find_spec

import pytest
import torch
from benchmarks.rivals import rivals
from benchmarks.rivals.problems import SETTINGS, problem, stratified
from benchmarks.rivals.training import Balanced, NominalClock, Run, descend, passes
from benchmarks.rivals.trials import ROWS, accuracies, trial
from torch.nn.functional import cross_entropy

import forked


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return problem("digits", 100, tmp_path_factory.mktemp("no data"))


QUICK = ("recipe", "true labels, class-balanced")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.long)
        for name in ROWS
        if name != "cleanlab" or find_spec("cleanlab")
    ],
)
def test_every_row_trains_for_its_seconds_and_is_tested_on_the_development_examples(name, tmp_path):
    outcome = trial(("digits", 100, name, tmp_path, 0.2))
    assert 0 < outcome["steps"] <= 0.2 / 0.00048 + 3  # each part of a training may end a step too late
    for kind in ("trained", "adjusted"):
        worst, mean = outcome[kind]
        assert 0 <= worst <= mean <= 1
    if name == "recipe":
        assert len(outcome["notes"]["filters"]) == 1
        assert sum(outcome["notes"]["weights"]) == pytest.approx(1, abs=0.01)
    if name == "true labels, class-balanced":
        assert outcome["trained"][1] > 0.5


def test_parts_of_the_data_are_apart(digits):
    assert (digits.train.num, digits.holdout.num, digits.development.num, digits.report.num) == (490, 100, 100, 400)
    assert float((digits.true_y != digits.train.y).double().mean()) == pytest.approx(0.3, abs=1e-6)
    rows = [{tuple(row.tolist()) for row in part.x} for part in (digits.development, digits.report)]
    assert len(rows[0] & rows[1]) <= 1  # two scans may be equal
    back, rest = stratified(digits.holdout.group, 0.25, seed=0)
    assert torch.equal(torch.cat([back, rest]).sort().values, torch.arange(100))
    assert torch.bincount(digits.holdout.group[back]).tolist() == [2] * 10  # 2.5, rounded to even


def test_draws_are_in_proportion_to_quotas_and_weights():
    group = torch.tensor([0, 0, 1, 1, 1, 3])
    weight = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0, 5.0])
    draws = Balanced(group, 4, torch.Generator().manual_seed(0), weight)
    draws.quota = torch.tensor([0.5, 0.25, 0.125, 0.25]).double()  # nobody is in group 2
    counts = torch.bincount(draws.draw(80_000), minlength=6) / 80_000
    torch.testing.assert_close(counts, torch.tensor([0.125, 0.375, 0.125, 0.0, 0.125, 0.25]), atol=0.006, rtol=0)


def test_robust_losses_are_those_of_a_loop():
    logits, y = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    probabilities = [float(row.softmax(dim=0)[label]) for row, label in zip(logits, y, strict=True)]
    gce = sum((1 - p**0.7) / 0.7 for p in probabilities) / 7
    sce = sum(-0.1 * torch.tensor(p).log() + 4 * (1 - p) for p in probabilities) / 7
    assert float(rivals.generalised_cross_entropy(logits, y)) == pytest.approx(gce, rel=1e-5)
    assert float(rivals.symmetric_cross_entropy(logits, y)) == pytest.approx(float(sce), rel=1e-5)


def test_the_average_is_that_of_a_loop(digits):
    run = Run(digits, 1.0, NominalClock(0.125, 0.0))
    seen = []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            seen.append(self.weight.detach().clone())
            return super().forward(x)

    model = Watched(64, 10)
    averaged = descend(run, model, passes(run, digits.train), until=1, rate=0.01, average=0.8)
    assert run.steps == 8
    expected = seen[0]
    for step, value in enumerate([*seen[1:], model.weight.detach()], start=1):
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(averaged.weight.detach(), expected)


def test_logit_adjusted_loss_moves_the_logits_by_the_frequencies(digits):
    """With a rate of 0 nothing is learnt; what is tested is the loss that the model gets."""
    losses = []
    run = Run(digits, 0.02, NominalClock(0.01, 0.0))

    def spy(run, model, batches, *, until, rate, loss):
        x, y = next(batches)
        losses.append((model(x).detach(), y, loss))
        return model

    original, rivals.descend = rivals.descend, spy
    try:
        rivals.logit_adjusted(run, part="both", rate=0.0)
    finally:
        rivals.descend = original
    ((logits, y, loss),) = losses
    labels = torch.cat([digits.train.y, digits.holdout.y])
    prior = torch.tensor([float((labels == k).double().mean()) for k in range(10)])
    assert float(loss(logits, y)) == pytest.approx(float(cross_entropy(logits + prior.log(), y)), rel=1e-5)


def test_accuracy_of_the_worst_group_and_of_all(digits):
    logits = torch.zeros(digits.development.num, 10)
    logits[:, 3] = 1
    worst, mean = accuracies(logits, digits.development, 10)
    assert worst == 0
    assert mean == pytest.approx(float((digits.development.y == 3).double().mean()))


@pytest.mark.long
def test_the_command_makes_what_is_missing_and_prints_tables(tmp_path):
    command = ["-m", "benchmarks.rivals"]
    options = ["--out", tmp_path / "trials.jsonl", "--seconds", "0.05", "--seeds", "100", "--rows"]
    make = ["digits", "--data-dir", tmp_path, *options, "recipe", "class-balanced"]
    for number in (2, 0):
        done = forked.run([*command, *make])
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^digits 100 ", done.stdout, flags=re.MULTILINE)) == number
        assert f"**{SETTINGS['digits'].title}**" in done.stdout
        assert re.search(
            r"^\| recipe \| 0\.\d{3} / 0\.\d{3} \| 0\.\d{3} / 0\.\d{3} \| \d+ \| 1 \|$", done.stdout, re.MULTILINE
        )
    assert len([json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]) == 2
    done = forked.run([*command, "digit", "--data-dir", tmp_path])
    assert done.returncode == 2
    assert "there is no 'digit'; choose from digits, fashion_mnist" in done.stderr
