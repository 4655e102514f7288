"""The code in docs/tasks.md runs as it stands there; its table names losses that exist."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import reducr
from language import Sequences, TinyLanguageModel
from reducr import functional

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text()


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def names():
    model = TinyLanguageModel()
    generator = torch.Generator().manual_seed(0)
    data = Sequences(48, columns=("group",), has_empty=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "model": model,
        "clean": DataLoader(Sequences(18, seed=2, columns=("group",), has_empty=False), batch_size=9),
        "train": DataLoader(data, batch_size=16, shuffle=True, generator=generator),
        "optimizer": optimizer,
        "optimizer_of_reference": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        "dataset": data,
        "collator": torch.utils.data.default_collate,
        "DataLoader": DataLoader,
    }


@pytest.mark.filterwarnings("ignore:The reference model is near chance")  # on 18 random sequences it is
def test_the_code_runs(names, capsys):
    reports = []
    for block in blocks():
        exec(block, names)
        if "loader" in names:
            reports.append(names["loader"].report())
    by_sequence, by_domain, by_token, *_ = reports
    assert (by_sequence.num_candidates, by_sequence.num_selected) == (48, 6)
    assert by_domain.num_batches == 0  # only made
    assert 0.57 < by_token.fraction <= 0.6
    assert by_token.num_candidates > 100
    assert "candidates selected" in capsys.readouterr().out
    assert len(next(iter(names["train"]))["group"]) == 32
    for task, loss in names["losses"].items():
        assert callable(loss), task


def test_the_losses_of_the_page_give_one_value_for_each_example(names):
    exec(blocks()[-1], names)
    losses = names["losses"]
    outputs, size = torch.randn(5, 3), (5,)
    assert losses["several labels"](outputs, torch.ones(5, 3)).shape == size
    assert losses["soft labels"](outputs, torch.full((5, 3), 1 / 3)).shape == size
    assert losses["regression"](outputs, outputs).tolist() == [0.0] * 5
    for shape in ((5,), (5, 1), (5, 2)):
        assert losses["regression"](torch.zeros(shape), torch.full(shape, 2.0)).tolist() == [4.0] * 5
    assert losses["regression"](torch.arange(5.0)[:, None], torch.arange(5.0)).tolist() == [0.0] * 5
    for logits in (torch.zeros(5), torch.zeros(5, 1)):
        assert losses["one logit"](logits, torch.arange(5) > 2).tolist() == pytest.approx([math.log(2)] * 5)
    assert losses["segmentation"](torch.randn(5, 3, 4, 4), torch.full((5, 4, 4), 255)).tolist() == [0.0] * 5
    assert losses["tagging"](torch.randn(5, 4, 3), torch.zeros(5, 4, dtype=torch.int64)).shape == size


def test_every_rule_and_loss_on_the_page_exists():
    code = set(re.findall(r"`(\w+)(?:\(.*?\))?`", PAGE))
    named = {name for name in code if name.endswith(("_loss", "Loss")) and name not in ("mean_bce", "mean_square")}
    assert named <= {*functional.__all__, *reducr.SELECTORS}
    assert {"sequence_loss", "TokenLoss", "rho_loss"} <= named
