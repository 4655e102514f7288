"""The study of a language model runs at a tiny size, and its documented table is that of its stored runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from benchmarks import language_model
from benchmarks.run_store import RunStore

import local_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys):
    """What the command prints."""
    num_threads = torch.get_num_threads()

    def printed(*arguments):
        language_model.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    yield printed
    torch.set_num_threads(num_threads)


@pytest.mark.long
def test_every_method_trains_on_as_many_tokens(tmp_path, run):
    local_data.domains(tmp_path)
    out = tmp_path / "runs.json"
    options = ("--data-dir", tmp_path, "--seeds", 0, "--tiny", "--out", out)
    text = run(*options)
    assert run(*options) == text[text.index("Seeds 0") :]  # nothing is run again
    runs = {outcome["method"]: outcome for outcome in json.loads(out.read_text())["runs"]}
    assert set(runs) == {*language_model.METHODS, *language_model.BASELINES}
    for outcome in runs.values():
        assert len(outcome["losses"]) == 5
        assert all(3 < loss < 8 for loss in outcome["losses"])  # log 512 is 6.2
    for method in language_model.METHODS:
        assert 800 <= runs[method]["num_tokens"] < 800 + 16 * 40
        assert sum(runs[method]["shares"]) == pytest.approx(1, abs=1e-3)
    assert runs["class_balanced"]["shares"][0] < runs["uniform"]["shares"][0]  # of the frequent news
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d\.\d{3}) ± 0\.000 \|", text, flags=re.MULTILINE))
    assert len(rows) == len(runs)
    assert rows["uniform"] == f"{max(runs['uniform']['losses']):.3f}"


def test_tokens_are_shuffled_in_the_noisy_domain_alone(tmp_path):
    local_data.domains(tmp_path)
    texts = language_model.read_texts(tmp_path)
    first, again = (language_model.Parts.of(texts, language_model.TINY, seed) for seed in (0, 0))
    assert torch.equal(first.train.tokens, again.train.tokens)
    is_wiki = first.train.groups == language_model.DOMAINS.index("wiki")
    assert 0.5 < first.train.is_shuffled[is_wiki].float().mean() < 0.9
    assert not first.train.is_shuffled[~is_wiki].any()
    assert int(first.holdout.is_shuffled.sum() + first.test.is_shuffled.sum()) == 0
    assert torch.bincount(first.train.groups).tolist() == list(language_model.TINY.train.values())
    for part in first:
        lengths = (part.tokens != language_model.PAD).sum(dim=1)
        assert lengths.min() > 2
        assert (part.tokens[:, 0] == 1).all()


def test_the_documented_table_is_that_of_the_stored_runs():
    text = (ROOT / "docs/results.md").read_text()
    table = text.split(language_model.BEGIN)[1].split(language_model.END)[0].strip()
    runs = RunStore.read(ROOT / "benchmarks/language_model.json", language_model.KEY).runs
    assert table == language_model.markdown_table(runs)
