"""Selection in Lightning with a callback: train on a tenth of every batch, selected uniformly or by REDUCR.

    pip install '.[train]'
    python examples/lightning_callback.py

Takes seconds. The module does not change. With `Trainer(strategy="ddp", devices=2)`, also set `distributed="global"`.
"""

import logging

import lightning.pytorch as pl
import torch
from noisy_digits import NUM_CLASSES, accuracies, make_data, make_model, make_reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.lightning import SelectiveTraining


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self):
        super().__init__()
        self.model = make_model()

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch  # the 10 of 100 examples selected
        return nn.functional.cross_entropy(self(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
noisy, clean, test = make_data()
reference = make_reference(*clean)
print(f"reference  {accuracies(reference, *test)}")

for name, options in {"uniform": {}, "reducr": {"step_size": 1e-3}}.items():
    module = Classifier()
    selection = SelectiveTraining(
        reducr.make_selector(name, num_groups=NUM_CLASSES, **options),
        reducr.Reference(reference),
        fraction=0.1,
        holdout=DataLoader(TensorDataset(*clean), batch_size=100),
        refresh_steps=20,
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=40, callbacks=[selection], **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(*noisy), batch_size=100, shuffle=True))
    print(f"{name:10} {accuracies(module, *test)}")
print(selection.report())
