"""The code in docs/loops.md on Lightning and on streams runs as it stands there, after the README's."""

import io
import re
import tarfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


class Linear(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, _):
        inputs, targets = batch
        assert len(targets) == (32 if len(targets) > 10 else 2)  # of 320, or of the last 20
        return torch.nn.functional.cross_entropy(self(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


@pytest.fixture
def names():
    """What the README's code leaves."""
    (readme,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(readme, names)
    return names


def code_of(section):
    text = (ROOT / "docs/loops.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def test_lightning(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names["module"] = Linear(names["model"])
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    code = code_of("Lightning").replace("max_epochs=10", "max_epochs=12, **quiet, enable_checkpointing=False")
    names |= {"quiet": quiet}
    exec(code, names)
    report = names["selection"].report()
    assert (report.num_steps, report.num_candidates, report.num_selected) == (120, 12 * 2900, 12 * 290)


def write_tar(path, *, first, size):
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + size):
            values = np.random.default_rng(number).normal(size=20).astype(np.float32)
            label = str(values[:3].argmax()).encode()
            for extension, content in (("npy", values.tobytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_streams(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "part-0.tar", first=0, size=400)
    write_tar(tmp_path / "part-1.tar", first=400, size=300)

    def to_input_and_target(sample):
        return torch.frombuffer(bytearray(sample["npy"]), dtype=torch.float32), int(sample["cls"])

    names |= {"to_input_and_target": to_input_and_target}
    exec(code_of("Streams"), names)
    sizes = [len(targets) for _, targets in names["loader"]]
    assert sizes == [32, 32, 6]
    assert names["loader"].report().num_candidates == 700
