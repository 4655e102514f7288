"""A very small language model in plain torch, padded sequences of several domains, and plain loops over them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import Dataset

import reducr
from reducr.functional import TokenLoss, sequence_loss
from reference.tokens import sequence_losses, token_losses

VOCABULARY, LENGTH, NUM_DOMAINS = 11, 9, 3
LOSSES = {"sequence": sequence_loss, "token": TokenLoss()}


class TinyLanguageModel(nn.Module):
    """Logits (B, T, V) from the mean of all tokens so far; called and read as models of the transformers library."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tokens = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(8, VOCABULARY, generator=generator, dtype=torch.float64))

    def forward(self, input_ids, attention_mask=None, labels=None):
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = (self.tokens[input_ids] * weights.unsqueeze(2)).cumsum(dim=1)
        logits = states / weights.cumsum(dim=1).clamp(min=1).unsqueeze(2) @ self.head
        loss = None if labels is None else TokenLoss()(logits, labels).mean()
        return SimpleNamespace(logits=logits, loss=loss)


class Sequences(Dataset):
    """Padded sequences with prompts that are not predicted; the last sequence has no label at all."""

    def __init__(self, size=60, *, seed=1, columns=("idx", "group"), has_empty=True):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, VOCABULARY, (size, LENGTH), generator=generator)
        lengths = torch.randint(3, LENGTH + 1, (size, 1), generator=generator)
        prompts = torch.randint(0, 2, (size, 1), generator=generator)
        places = torch.arange(LENGTH)
        self.mask = (places < lengths).long()
        self.labels = self.tokens.masked_fill((places >= lengths) | (places < prompts), -100)
        if has_empty:
            self.labels[-1] = -100
        self.columns = {"idx": torch.arange(size), "group": torch.arange(size) % NUM_DOMAINS}
        self.columns = {name: self.columns[name] for name in columns}

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, position):
        item = {
            "input_ids": self.tokens[position],
            "attention_mask": self.mask[position],
            "labels": self.labels[position],
        }
        return item | {name: column[position] for name, column in self.columns.items()}


def make_parts(name, **options):
    """Model, selector and reference: one model for each domain where the rule needs the losses of all."""
    steps = {"step_size": 0.05} if name in ("reducr", "priority_sampling") else {}
    selector = reducr.make_selector(name, num_groups=NUM_DOMAINS, **steps | options)
    reads_groups = "group_irreducible_loss" in selector.needs
    models = [TinyLanguageModel(seed) for seed in range(10, 13)] if reads_groups else TinyLanguageModel(10)
    return TinyLanguageModel(0), selector, reducr.Reference(models)


@torch.no_grad()
def plain_losses(model, batch, *, by_token):
    """One loss for each candidate, from plain loops."""
    logits = model(batch["input_ids"], batch["attention_mask"]).logits.tolist()
    labels = batch["labels"].tolist()
    if not by_token:
        return sequence_losses(logits, labels)
    return [loss for places in token_losses(logits, labels) for loss in places.values()]


def places_of(batch):
    """(sequence, place) of each labelled token, sequence after sequence."""
    labels = batch["labels"].tolist()
    return [(row, place) for row, own in enumerate(labels) for place in range(1, LENGTH) if own[place] != -100]


def candidate_groups(batch, *, by_token):
    """The domain of each candidate."""
    groups = batch["group"].tolist()
    return [groups[row] for row, _ in places_of(batch)] if by_token else groups


def inputs_of(batch):
    """What the model is called with in a training step."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def train_on(model, batch, optimizer):
    """A step of an ordinary loop."""
    optimizer.zero_grad()
    model(**inputs_of(batch)).loss.backward()
    optimizer.step()


def snapshot(model):
    """The parameters."""
    return copy.deepcopy(model.state_dict())
