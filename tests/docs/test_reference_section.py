"""The code in docs/loops.md on the reference model runs as it stands there, after the README's."""

import functools
import re
from pathlib import Path

import torch

import reducr

ROOT = Path(__file__).parents[2]


def test_the_code_on_the_reference_model_runs(monkeypatch):
    text = (ROOT / "docs/loops.md").read_text().split("## The reference model\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    (readme,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    torch.manual_seed(0)
    quick = functools.partial(torch.optim.AdamW, lr=0.03)
    options = {"optimizer": quick, "num_epochs": 6}
    monkeypatch.setattr(reducr, "fit_reference", functools.partial(reducr.fit_reference, **options))
    names = {}
    exec(readme.replace(", num_epochs=20", ""), names)
    parts, batch = {}, names["train"].dataset[:100]
    for name, block in zip(("plain", "groups", "table"), blocks, strict=True):
        exec(block, names)
        parts[name] = names["irreducible"], names.get("models")
    group = names["spec"].read(batch).group
    rule = reducr.make_selector("reducr", num_groups=2)
    read = reducr.Batch(torch.arange(100), *batch, group)
    for irreducible in (reducr.Reference(names["models"]), parts["groups"][0]):
        assert irreducible.bind(rule).lookup(read).shape == (100, 2)
    live, table = parts["plain"][0], parts["table"][0]
    assert torch.allclose(live.lookup(read), table.lookup(read), atol=1e-6)
    assert [len(entry) for entry in next(iter(names["train"]))] == [320, 320]
