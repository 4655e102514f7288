"""The settings of the study: the arrays of a seed, the model and the seconds of a run."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.cifar_sheets import data_dir_for
from reducr.data import ExampleDataset, Splits
from reducr.irreducible.joint_labels import JointLabels
from reducr.models import MLP
from reducr.pipeline.setup import SeedData, build

NEGATIONS = ("no", "not", "never", "nobody", "nothing", "none", "neither", "nor", "cannot", "n't", "nowhere")
NUM_DEVELOPMENT_FOLDS = 5


class Examples(NamedTuple):
    """Examples in memory."""

    x: Tensor
    """(N, ...) inputs."""
    y: Tensor
    """(N,) labels."""
    group: Tensor
    """(N,) groups."""

    @classmethod
    def of(cls, data: ExampleDataset) -> Examples:
        """All examples of a data set."""
        return cls(data.input, data.target, data.group)

    def take(self, index: Tensor) -> Examples:
        """The examples at ``index`` (M,)."""
        return Examples(*(column.index_select(0, index) for column in self))

    def __add__(self, other: Any) -> Examples:
        return Examples(*(torch.cat(columns) for columns in zip(self, other, strict=True)))

    @property
    def num(self) -> int:
        """N."""
        return len(self.y)


@dataclass(frozen=True)
class Problem:
    """A setting with the data of one seed.

    Args:
        name: key of ``SETTINGS``.
        seed: of the data and of everything drawn in a run.
        data: the parts, for the selection methods of the program.
        config: the configuration of the experiment, for the same.
        train: noisy training examples.
        holdout: clean holdout examples (of tweets as noisy as the rest).
        development: a fifth of the test examples; the report does not use them.
        report: the other four fifths.
        true_y: (N,) true labels of ``train``, if known.
        batch_size: examples per step.
        num_candidates: candidates per step of the selection methods.
        num_classes: C.
        num_groups: G.
        model: makes a new model of a seed.
    """

    name: str
    seed: int
    data: SeedData
    config: DictConfig
    train: Examples
    holdout: Examples
    development: Examples
    report: Examples
    true_y: Tensor | None
    batch_size: int
    num_candidates: int
    num_classes: int
    num_groups: int
    model: Callable[[int], nn.Module]

    @property
    def has_groups(self) -> bool:
        """Whether the groups are not the classes."""
        return bool((self.holdout.group != self.holdout.y).any())


@dataclass(frozen=True)
class Setting:
    """A setting of the study.

    Args:
        title: in the tables.
        seconds: processor seconds of a run.
        experiment: of ``reducr run``.
        options: of ``reducr run``.
        true_labels: options with which the same training examples have their true labels; None if they are unknown.
        make: makes the data of a seed from a folder, for a setting that is no experiment.
        step: milliseconds of a gradient step on a free core.
        example: microseconds of an example in a forward pass.
        has_true_labels: whether the true labels of all training examples are known, and differ.
        is_text: whether inputs are numbers of tokens.
    """

    title: str
    seconds: float
    experiment: str = "digits"
    options: tuple[str, ...] = ()
    true_labels: tuple[str, ...] | None = None
    make: Callable[[Path, int], tuple[SeedData, Tensor | None, Callable[[int], nn.Module]]] | None = None
    step: float = 0.48
    example: float = 2.2
    has_true_labels: bool = True
    is_text: bool = False


def problem(name: str, seed: int, folder: Path) -> Problem:
    """The setting ``name`` with the data of ``seed``, read from ``folder``."""
    setting = SETTINGS[name]
    options = setting.options
    true_y = None
    if setting.make is not None:
        config = _composed(setting.experiment, options)
        data, true_y, model = setting.make(folder, seed)
    else:
        if setting.experiment != "digits":
            options += (f"datamodule.data_dir={data_dir_for(setting.experiment, folder)}",)
        config = _composed(setting.experiment, options)
        data = SeedData.of(_datamodule(setting.experiment, options), seed)
        if setting.true_labels is not None:
            clean = _datamodule(setting.experiment, (*options, *setting.true_labels)).splits(seed=seed).train
            assert torch.equal(clean.source, data.splits.train.source)
            true_y = clean.target
        size = data.splits.test.num_classes

        def model(seed: int) -> nn.Module:
            return data.make_model(config.model, num_outputs=size, seed=seed)

    splits = data.splits
    test = Examples.of(splits.test)
    is_development = torch.arange(test.num) % NUM_DEVELOPMENT_FOLDS == 0
    return Problem(
        name=name,
        seed=seed,
        data=data,
        config=config,
        train=Examples.of(splits.train),
        holdout=Examples.of(splits.holdout),
        development=test.take(torch.nonzero(is_development).flatten()),
        report=test.take(torch.nonzero(~is_development).flatten()),
        true_y=true_y,
        batch_size=int(config.fraction * config.num_candidates + 1e-9),
        num_candidates=config.num_candidates,
        num_classes=splits.train.num_classes,
        num_groups=splits.train.num_groups,
        model=model,
    )


def with_holdout(problem: Problem, index: Tensor) -> Problem:
    """The same problem with a part of its holdout set."""
    splits = replace(problem.data.splits, holdout=problem.data.splits.holdout.take(index))
    splits = replace(splits, irreducible=splits.holdout)
    return replace(problem, holdout=problem.holdout.take(index), data=replace(problem.data, splits=splits))


def stratified(group: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of a share of every group, at least one example of each, and those of the rest."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(group), generator=generator)
    order = order[torch.sort(group[order], stable=True).indices]
    counts = torch.bincount(group)
    rank = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group[order]]
    is_in = rank < (share * counts[group[order]]).round().clamp(min=1)
    return order[is_in].sort().values, order[~is_in].sort().values


def _composed(experiment: str, options: tuple[str, ...]) -> DictConfig:
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[f"experiment={experiment}", *options])


@cache
def _datamodule(experiment: str, options: tuple[str, ...]) -> Any:
    return build(_composed(experiment, options).datamodule)


# ---- settings that are no experiments of `reducr run`


def _seed_data(
    seed: int, parts: dict[str, Examples], *, num_classes: int, num_groups: int | None = None, facts: dict[str, int]
) -> SeedData:
    pool = torch.cat([part.x for part in parts.values()])
    first, sets = 0, {}
    for name, part in parts.items():
        source = torch.arange(first, first + part.num)
        first += part.num
        groups = {} if num_groups is None else {"group": part.group, "num_groups": num_groups}
        sets[name] = ExampleDataset(pool, part.y, num_classes=num_classes, source=source, **groups)
    holdout = sets["holdout"]
    labels = JointLabels.of(
        holdout.target, holdout.group, num_classes=holdout.num_classes, num_groups=holdout.num_groups
    )
    names = tuple(map(str, range(num_classes)))
    splits = Splits(sets["train"], holdout, sets["test"], names, holdout, facts=facts)
    return SeedData(seed, splits, labels, None, None, facts)


@cache
def _news(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    features = np.load(folder / "noisy_ag_news" / "e5_features.npz")
    tables = []
    for name in ("train_medium", "test"):
        with gzip.open(folder / "noisy_ag_news" / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
            tables.append(pd.read_csv(file))
    x, x_test = features["train"].astype(np.float32), features["test_even_rows"].astype(np.float32)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    train, test = tables
    return (
        (x - mean) / deviation,
        train["label"].to_numpy(),
        train["gt"].to_numpy(),
        (x_test - mean) / deviation,
        test["gt"].to_numpy()[::2],
    )


def _make_news(
    folder: Path, seed: int, *, clean_rows: int = 50, is_thinned: bool = False, hidden: tuple[int, ...] = ()
) -> tuple[SeedData, Tensor, Callable[[int], nn.Module]]:
    """News texts with the labels of people, as frozen sentence embeddings."""
    x, shown, true, x_test, y_test = _news(folder)
    random = np.random.RandomState(seed)
    clean = np.concatenate([random.permutation(np.flatnonzero(true == k))[:clean_rows] for k in range(4)])
    noisy = np.setdiff1d(np.arange(len(true)), clean)
    if is_thinned:
        rare = noisy[shown[noisy] == 3]
        noisy = np.union1d(noisy[shown[noisy] != 3], random.permutation(rare)[: len(rare) // 10])

    def examples(x: np.ndarray, y: np.ndarray) -> Examples:
        target = torch.tensor(y, dtype=torch.int64)
        return Examples(torch.from_numpy(x), target, target)

    parts = {
        "train": examples(x[noisy], shown[noisy]),
        "holdout": examples(x[clean], true[clean]),
        "test": examples(x_test, y_test),
    }
    data = _seed_data(seed, parts, num_classes=4, facts={"num_features": x.shape[1]})

    def model(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return MLP(num_features=x.shape[1], num_classes=4, hidden_sizes=hidden)

    return data, torch.tensor(true[noisy], dtype=torch.int64), model


def _make_negation(folder: Path, seed: int) -> tuple[SeedData, None, Callable[[int], nn.Module]]:
    """Pairs of sentences; a group is a label with or without a negation word in the hypothesis."""
    options = (f"datamodule.data_dir={folder}", "datamodule.train_file=[nli/mnli_subset_train.tsv.gz]")
    options += ("datamodule.holdout_file=[nli/mnli_subset_validation.tsv.gz]", "datamodule.test_size=4000")
    config = _composed("nli", options)
    data = SeedData.of(_datamodule("nli", options), seed)
    negated = _negated(folder)
    sets = {}
    for name, part in data.splits.by_name().items():
        group = 2 * part.target + negated[part.source]
        sets[name] = ExampleDataset(
            part.pool, part.target, num_classes=3, source=part.source, group=group, num_groups=6
        )
    holdout = sets["holdout"]
    splits = replace(
        data.splits,
        train=sets["train"],
        holdout=holdout,
        test=sets["test"],
        irreducible=holdout,
        group_names=tuple(f"{label}, {kind}" for label in data.splits.class_names for kind in ("plain", "negated")),
    )
    labels = JointLabels.of(holdout.target, holdout.group, num_classes=3, num_groups=6)
    data = replace(data, splits=splits, joint_labels=labels)
    return data, None, lambda seed: data.make_model(config.model, num_outputs=3, seed=seed)


@cache
def _negated(folder: Path) -> Tensor:
    """Whether the hypothesis of each row of the pool has a negation word: rows of the training, then the other file."""
    rows: list[bool] = []
    for name in ("mnli_subset_train", "mnli_subset_validation"):
        table = pd.read_csv(
            folder / "nli" / f"{name}.tsv.gz", sep="\t", quoting=3, keep_default_na=False, encoding="utf-8"
        )
        for text in table["hypothesis"]:
            words = text.lower().replace("n't", " n't").replace(",", " ").replace(".", " ").split()
            rows.append(any(word in NEGATIONS for word in words))
    return torch.tensor(rows).long()


_NEWS_OPTIONS = ("num_candidates=320", "irreducible.num_epochs=40", "holdout.refresh_steps=100")
SETTINGS = {
    "digits": Setting(
        "Digits: 490 scans, 30 % wrong labels, imbalance 10:1, 100 clean holdout scans",
        1.5,
        true_labels=("datamodule.label_noise.train=null",),
    ),
    "fashion_mnist": Setting(
        "Fashion-MNIST: 22,477 images, 30 % wrong labels, imbalance 10:1, 5,000 clean holdout images",
        11.0,
        "fashion_mnist",
        ("irreducible.num_epochs=5",),
        ("datamodule.label_noise.train=null",),
        step=3.6,
        example=18.0,
    ),
    "cifar10n_worse": Setting(
        "CIFAR-10N: 19,618 images, 40 % wrong labels by people, imbalance 10:1, 2,000 clean holdout images",
        15.0,
        "cifar10n_worse",
        ("irreducible.num_epochs=10",),
        ("datamodule.labels=clean",),
        step=5.1,
        example=37.0,
    ),
    "tweets": Setting(
        "Tweets: 44,629 with 20 emojis, imbalance 10:1, 4,980 holdout tweets as noisy as the rest",
        10.0,
        "tweeteval_emoji",
        ("irreducible.num_epochs=3", "holdout.refresh_steps=100"),
        step=3.8,
        example=30.0,
        has_true_labels=False,
        is_text=True,
    ),
    "cifar10_clean": Setting(
        "CIFAR-10, clean and balanced: 45,000 images, 5,000 holdout images",
        15.0,
        "cifar10n_worse",
        (
            "datamodule.labels=clean",
            "datamodule.imbalance.train=null",
            "datamodule.holdout_size=5000",
            "irreducible.num_epochs=5",
        ),
        (),
        step=5.1,
        example=37.0,
        has_true_labels=False,
    ),
    "news": Setting(
        "News: 9,800 texts, labels by people, 20 % wrong and unevenly, 200 clean texts; frozen features, linear head",
        2.0,
        options=_NEWS_OPTIONS,
        make=_make_news,
        step=0.3,
        example=0.3,
    ),
    "news_thinned": Setting(
        "News, class 3 thinned to a tenth; frozen features, linear head",
        2.0,
        options=_NEWS_OPTIONS,
        make=lambda folder, seed: _make_news(folder, seed, is_thinned=True),
        step=0.3,
        example=0.3,
    ),
    "negation": Setting(
        "MultiNLI: 9,881 pairs of sentences, six groups: label, and a negation word in the hypothesis",
        8.0,
        "nli",
        ("irreducible.num_epochs=10", "holdout.refresh_steps=100"),
        make=_make_negation,
        step=5.8,
        example=62.0,
        has_true_labels=False,
        is_text=True,
    ),
}
