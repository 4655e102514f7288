"""Data and model of the examples: scanned digits with label noise and class imbalance."""

import torch
from sklearn.datasets import load_digits
from torch import nn

NUM_CLASSES = 10


def make_data():
    """A training set with 30 % wrong labels and a tenth of the nines, a clean holdout set and a test set."""
    generator = torch.Generator().manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    inputs, labels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
    test, holdout, rest = torch.arange(len(labels)).split([400, 100, len(labels) - 500])
    is_kept = torch.rand(len(rest), generator=generator) < 0.1 ** (labels[rest] / (NUM_CLASSES - 1))
    train = rest[is_kept]
    wrong = (labels[train] + torch.randint(1, NUM_CLASSES, train.shape, generator=generator)) % NUM_CLASSES
    noisy = torch.where(torch.rand(len(train), generator=generator) < 0.3, wrong, labels[train])
    return (inputs[train], noisy), (inputs[holdout], labels[holdout]), (inputs[test], labels[test])


def make_model():
    """A small network, always with the same initial parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, NUM_CLASSES))


def make_reference(inputs, labels):
    """A reference model (the paper's irreducible model): the network trained on the clean holdout set."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracies(model, inputs, labels):
    """Accuracy of the worst class and over all examples, as text."""
    correct = (model.eval()(inputs).argmax(dim=1) == labels).float()
    worst = min(correct[labels == label].mean().item() for label in range(NUM_CLASSES))
    return f"worst class {worst:.3f}  mean {correct.mean().item():.3f}"
