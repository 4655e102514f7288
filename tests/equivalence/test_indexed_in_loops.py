"""An indexed data set and a tabulated reference in the loops of Lightning, transformers and accelerate."""

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from hugging_face import Texts, make_arguments, make_model, make_parts
from reducr.hugging_face import SelectiveTrainer
from reducr.lightning import SelectiveTraining

SIZE = 60
INPUTS = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS.argmax(dim=1)


def make_loader(*, is_indexed):
    data = TensorDataset(INPUTS, TARGETS)
    generator = torch.Generator().manual_seed(1)
    return DataLoader(reducr.indexed(data) if is_indexed else data, batch_size=20, shuffle=True, generator=generator)


def make_reference():
    reference = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        reference.weight.copy_(4 * torch.eye(3))
    return reducr.Reference(reference)


def make_net():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.seen = make_net(), []

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, _):
        inputs, targets = batch
        self.seen.append(inputs)
        return nn.functional.cross_entropy(self(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def by_lightning(train, irreducible):
    module, rule = Module(), reducr.make_selector("rho_loss", num_groups=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=2,
        enable_checkpointing=False,
        callbacks=[SelectiveTraining(rule, irreducible, fraction=0.2)],
        **quiet,
    )
    trainer.fit(module, train)
    return torch.cat(module.seen)


def by_loop(train, irreducible, model=None):
    model = model or make_net()
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    loader = reducr.SelectiveLoader(
        train, model, reducr.make_selector("rho_loss", num_groups=3), irreducible, fraction=0.2
    )
    for _ in range(2):
        for inputs, targets in loader:
            seen.append(inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return torch.cat(seen)


def by_accelerate(train, irreducible):
    AcceleratorState._reset_state(reset_partial_state=True)
    model, train = Accelerator(cpu=True).prepare(make_net(), train)
    return by_loop(train, irreducible, model)


@pytest.mark.parametrize("run", [by_loop, by_lightning, by_accelerate])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_table_selects_what_the_live_reference_selects(run):
    live = run(make_loader(is_indexed=False), make_reference())
    table = make_reference().tabulate(TensorDataset(INPUTS, TARGETS))
    assert torch.equal(run(make_loader(is_indexed=True), table), live)


class Recording(SelectiveTrainer):
    def training_step(self, *arguments, **options):
        loss = super().training_step(*arguments, **options)
        self.picked = [*getattr(self, "picked", []), self.downsampler.selected.index]
        return loss


def test_the_trainer_of_transformers_reads_the_index_of_an_indexed_data_set(tmp_path):
    picked = []
    for data in (Texts(columns=("idx",)), reducr.indexed(Texts(columns=()))):
        selector, irreducible = make_parts("rho_loss")
        arguments = make_arguments(tmp_path, num_train_epochs=1)
        trainer = Recording(
            make_model(), arguments, train_dataset=data, selector=selector, irreducible=irreducible, fraction=0.2
        )
        trainer.train()
        picked.append(torch.cat(trainer.picked))
    assert torch.equal(*picked)
