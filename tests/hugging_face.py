"""A small text classifier and what trains it: for tests, and for processes that tests start and kill."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import reducr
from reducr.hugging_face import SelectiveTrainer
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, PlainIrreducibleLoss, TableLogits
from reducr.scoring import Scoring

NUM_POINTS, NUM_CLASSES, NUM_WORDS, LENGTH = 330, 4, 50, 8
NUM_CANDIDATES, FRACTION, SEED, REFRESH_STEPS = 40, 0.2, 3, 4


class Texts(Dataset):
    """Made texts of ``num_examples``, as Hugging Face data sets yield them."""

    def __init__(self, num_examples=NUM_POINTS, *, seed=1, columns=("idx",)):
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(5, NUM_WORDS, (num_examples, LENGTH), generator=generator)
        self.labels = self.words.sum(dim=1) % NUM_CLASSES
        self.columns = columns

    def __len__(self):
        return len(self.words)

    def __getitem__(self, position):
        point = {"input_ids": self.words[position], "label": int(self.labels[position]), "note": f"text {position}"}
        values = {"idx": position, "site": position % 3}
        return point | {name: values[name] for name in self.columns}


def make_model(*, dropout=0.1):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=NUM_WORDS,
        max_position_embeddings=LENGTH,
        num_labels=NUM_CLASSES,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def make_parts(name="reducr", **options):
    """Selector and irreducible losses."""
    logits = torch.randn(NUM_POINTS, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    irreducible = PlainIrreducibleLoss(source) if name == "rho_loss" else AdjustedIrreducibleLoss(source)
    steps = {"step_size": 0.05} if name == "reducr" else {}
    return reducr.make_selector(name, num_groups=NUM_CLASSES, **steps, **options), irreducible


def make_arguments(folder, **options):
    given = {
        "per_device_train_batch_size": NUM_CANDIDATES,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "seed": SEED,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **given | options)


class Recording(SelectiveTrainer):
    """Keeps what it has seen and selected."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen, self.picked, self.loss_weights = [], [], []

    def training_step(self, model, inputs, *arguments, **options):
        loss = super().training_step(model, inputs, *arguments, **options)
        self.seen.append(inputs["idx"].clone())
        self.picked.append(self.downsampler.selected.index.clone())
        self.loss_weights.append(self.downsampler.loss_weight)
        return loss


def make_trainer(folder, *, name="reducr", data=None, trainer=Recording, budget=None, **options):
    """A trainer of the small classifier; ``options`` of the selection, of the Trainer and of its arguments alike."""
    selector, irreducible = make_parts(name)
    given = {
        "model": make_model() if "model_init" not in options else None,
        "train_dataset": data or Texts(),
        "selector": selector,
        "irreducible": irreducible,
        "fraction": FRACTION,
        "refresh_steps": REFRESH_STEPS,
        "holdout_dataset": Texts(60, seed=2, columns=()),
        "scoring": Scoring(budget=budget),
    }
    of_arguments = TrainingArguments.__dataclass_fields__.keys()
    chosen = {key: value for key, value in options.items() if key not in of_arguments}
    settings = {key: value for key, value in options.items() if key in of_arguments}
    return trainer(**{"args": make_arguments(folder, **settings)} | given | chosen)


def train_until_killed(folder):
    """The run of the test that kills it, on from wherever it is."""
    torch.set_num_threads(1)
    trainer = make_trainer(folder, **KILLED)
    (folder / "has_begun").touch()
    try:
        trainer.train(resume_from_checkpoint=True)
    except ValueError as error:
        if "There is no complete checkpoint" not in str(error):
            raise
        trainer.train()


KILLED = {"num_train_epochs": 15, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2, "save_total_limit": 3}


if __name__ == "__main__":
    train_until_killed(Path(sys.argv[1]))
