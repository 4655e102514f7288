"""Fine-tune a small language model on several domains, one rare and one noisy, with each way of selecting.

    python -m benchmarks.language_model --data-dir DIR                   run what is missing, then print the table
    python -m benchmarks.language_model --data-dir DIR --seeds 10        on other seeds
    python -m benchmarks.language_model                                  print the table of the stored runs

DIR holds noisy_ag_news, nli, sst2 and tweeteval_emoji. A GPT-2 with two layers is pretrained on news. It is then
fine-tuned on sequences of five domains: frequent news, easy captions, reviews, Wikipedia with the tokens shuffled in
seven of ten sequences, and few tweets. Every method trains on the same number of tokens, which it selects from the same
candidates. The clean holdout set has 50 sequences of each domain. Figures are losses on clean test text in nats per
token, at the end of training. About nine minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducr
from benchmarks import results
from benchmarks.run_store import Key, RunStore, parse_arguments, run_if_requested
from reducr._internal.seeds import mixed_seed
from reducr.functional import TokenLoss, sequence_loss
from reducr.reports.statistics import estimate

BEGIN, END = "<!-- begin: benchmarks.language_model -->", "<!-- end: benchmarks.language_model -->"
DOMAINS = ("news", "captions", "reviews", "wiki", "tweets")
VOCABULARY, LENGTH, PAD = 512, 40, 0
SHUFFLED = 0.7
"""Fraction of the Wikipedia sequences whose tokens are shuffled."""
LEARNING_RATE = 1e-3
REFRESH_STEPS = 25
KEY = ("seed", "method")


@dataclass(frozen=True)
class Sizes:
    """How much text there is, and how long is trained."""

    train: Mapping[str, int]
    pretraining: int = 3000
    pretraining_epochs: int = 2
    holdout: int = 50
    test: int = 200
    reference_epochs: int = 5
    num_candidates: int = 64
    num_tokens: int = 100_000


FULL = Sizes({"news": 3600, "captions": 2400, "reviews": 800, "wiki": 1600, "tweets": 240})
TINY = Sizes(
    {"news": 60, "captions": 40, "reviews": 20, "wiki": 40, "tweets": 20},
    pretraining=40, pretraining_epochs=1, holdout=6, test=6, reference_epochs=1, num_candidates=32, num_tokens=800,
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        label: what the table calls it.
        rule: name of the selector.
        options: of the selector.
        by_token: select tokens of fewer sequences, not sequences.
        holdout: whether the holdout set is part of the training data.
    """

    label: str
    rule: str
    options: Mapping[str, Any] | None = None
    by_token: bool = False
    holdout: bool = False

    @property
    def fraction(self) -> float:
        """Fraction of the candidates to select; that of Rho-1 for tokens."""
        return 0.6 if self.by_token else 0.125


METHODS = {
    "uniform": Method("uniform", "uniform"),
    "uniform_with_holdout": Method("uniform, train + holdout", "uniform", holdout=True),
    "class_balanced": Method("domain-balanced", "class_balanced"),
    "class_balanced_with_holdout": Method("domain-balanced, train + holdout", "class_balanced", holdout=True),
    "rho_loss": Method("RHO-LOSS", "rho_loss"),
    "priority_sampling": Method("priority sampling", "priority_sampling", {"step_size": 3e-3}),
    "reducr": Method("REDUCR", "reducr", {"step_size": 3e-3}),
    "rho_loss_by_token": Method("RHO-LOSS by token (Rho-1)", "rho_loss", by_token=True),
    "reducr_by_token": Method("REDUCR by token", "reducr", {"step_size": 3e-4}, by_token=True),
}


# ---- text


def read_texts(data_dir: Path) -> dict[str, list[str]]:
    """The texts of each domain, in the order of their files, without repeats."""
    with gzip.open(data_dir / "noisy_ag_news" / "train_medium.csv.gz", "rt", encoding="utf-8", newline="") as file:
        news = [row["text"] for row in csv.DictReader(file)]
    texts = {
        "news": news,
        "captions": _column(data_dir / "nli" / "sick_train.tsv.gz", 0)
        + _column(data_dir / "nli" / "sick_test.tsv.gz", 0),
        "reviews": _column(data_dir / "sst2" / "train.tsv.gz", 0, has_header=False),
        "wiki": _column(data_dir / "nli" / "wiki_nli_train.tsv.gz", 1),
        "tweets": _column(data_dir / "tweeteval_emoji" / "train.tsv.gz", 1),
    }
    return {name: list(dict.fromkeys(texts[name])) for name in DOMAINS}


def _column(path: Path, number: int, *, has_header: bool = True) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t")[number] for line in file][1 if has_header else 0 :]


class Sequences(Dataset[dict[str, Tensor]]):
    """Padded sequences as dicts, with index and group; labels are -100 where there is padding."""

    def __init__(self, tokens: Tensor, groups: Tensor, is_shuffled: Tensor) -> None:
        self.tokens, self.groups, self.is_shuffled = tokens, groups, is_shuffled

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: Any) -> dict[str, Tensor]:
        tokens = self.tokens[position]
        mask = tokens != PAD
        return {
            "input_ids": tokens,
            "attention_mask": mask.long(),
            "labels": tokens.masked_fill(~mask, -100),
            "group": self.groups[position],
            "idx": torch.as_tensor(position),
            "is_shuffled": self.is_shuffled[position],
        }

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        """A whole batch, which torch's DataLoader asks for."""
        return self[torch.tensor(positions)]

    def __add__(self, other: Sequences) -> Sequences:  # type: ignore[override]  # of the same kind
        parts = zip(
            (self.tokens, self.groups, self.is_shuffled), (other.tokens, other.groups, other.is_shuffled), strict=True
        )
        return Sequences(*(torch.cat(part) for part in parts))


class Parts(NamedTuple):
    """The data of one seed."""

    pretraining: Sequences
    train: Sequences
    holdout: Sequences
    test: Sequences

    @classmethod
    def of(cls, texts: Mapping[str, Sequence[str]], sizes: Sizes, seed: int) -> Parts:
        """Draw the parts without overlap, train the vocabulary on those that are trained on, and shuffle the noise."""
        generator = torch.Generator().manual_seed(mixed_seed(seed, 0))
        drawn: dict[str, list[list[str]]] = {}
        for domain in DOMAINS:
            counts = [
                sizes.pretraining if domain == "news" else 0,
                sizes.train[domain],
                sizes.holdout,
                sizes.test,
            ]
            order = torch.randperm(len(texts[domain]), generator=generator)[: sum(counts)]
            if len(order) < sum(counts):
                raise ValueError(f"{domain} has {len(order)} texts, and {sum(counts)} are needed.")
            drawn[domain] = [[texts[domain][i] for i in part.tolist()] for part in order.split(counts)]
        encode = _vocabulary([text for parts in drawn.values() for part in parts[:3] for text in part])
        made = []
        for number in range(4):
            groups = torch.tensor([g for g, domain in enumerate(DOMAINS) for _ in drawn[domain][number]])
            tokens = encode([text for domain in DOMAINS for text in drawn[domain][number]])
            is_shuffled = (groups == DOMAINS.index("wiki")) & (torch.rand(len(groups), generator=generator) < SHUFFLED)
            is_shuffled &= torch.tensor(number == 1)
            _shuffle(tokens, is_shuffled, generator)
            made.append(Sequences(tokens, groups, is_shuffled))
        return cls(*made)


def _vocabulary(texts: Sequence[str]) -> Callable[[Sequence[str]], Tensor]:
    """A function from texts to tokens (N, T), with byte-pair encodings learned from ``texts``."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<pad>", "<bos>"], show_progress=False)

    def encode(texts: Sequence[str]) -> Tensor:
        tokens = torch.full((len(texts), LENGTH), PAD)
        for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
            ids = [1, *encoding.ids][:LENGTH]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    return encode


def _shuffle(tokens: Tensor, is_shuffled: Tensor, generator: torch.Generator) -> None:
    """Put the tokens of these sequences in a random order, in place."""
    for row in torch.nonzero(is_shuffled).flatten().tolist():
        length = int((tokens[row] != PAD).sum())
        tokens[row, 1:length] = tokens[row, 1:length][torch.randperm(length - 1, generator=generator)]


# ---- training


def new_model(seed: int) -> nn.Module:
    """A small GPT-2 with initial parameters from ``seed``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.random.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model is called with."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]) -> int:
    """Take a gradient step on the mean loss of the labelled tokens, and return their number."""
    optimizer.zero_grad()
    losses = TokenLoss()(model(**inputs_of(batch)).logits, batch["labels"])
    losses.mean().backward()
    optimizer.step()
    return len(losses)


def batches_of(data: Sequences, batch_size: int, *, seed: int | None = None) -> DataLoader[Any]:
    """Batches in a random order from ``seed``; in the order of the data without one."""
    generator, is_shuffled = torch.Generator().manual_seed(seed or 0), seed is not None
    return DataLoader(
        data, batch_size, shuffle=is_shuffled, drop_last=is_shuffled, generator=generator, collate_fn=_as_it_is
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def pretrained(parts: Parts, sizes: Sizes, seed: int) -> nn.Module:
    """The model that every method and every reference begins with."""
    model = new_model(mixed_seed(seed, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2 * LEARNING_RATE)
    loader = batches_of(parts.pretraining, 16, seed=mixed_seed(seed, 2))
    for _ in range(sizes.pretraining_epochs):
        for batch in loader:
            step_on(model, optimizer, batch)
    return model


@torch.no_grad()
def domain_losses(model: nn.Module, data: Sequences) -> list[float]:
    """Mean loss of each domain in nats per token."""
    sums, counts = torch.zeros(len(DOMAINS)), torch.zeros(len(DOMAINS))
    for batch in batches_of(data, 100):
        losses = TokenLoss()(model(**inputs_of(batch)).logits, batch["labels"])
        groups = batch["group"].repeat_interleave(TokenLoss().is_labelled(batch["labels"]).sum(dim=1))
        sums.index_add_(0, groups, losses)
        counts.index_add_(0, groups, torch.ones_like(losses))
    return (sums / counts).tolist()


def fine_tuned(base: nn.Module, holdout: Sequences, sizes: Sizes, *, seed: int, group: int | None = None) -> nn.Module:
    """A reference model: ``base`` after passes over the clean holdout set, with ten times the weight on ``group``."""
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = batches_of(holdout, min(16, len(holdout)), seed=seed)
    for _ in range(sizes.reference_epochs):
        for batch in loader:
            weights = torch.ones(len(batch["group"])) if group is None else 1.0 + 9.0 * (batch["group"] == group)
            losses = sequence_loss(model(**inputs_of(batch)).logits, batch["labels"])
            optimizer.zero_grad()
            (weights * losses).sum().div(weights.sum()).backward()
            optimizer.step()
    return model


SPEC = reducr.BatchSpec(input=inputs_of, target="labels", index="idx", group="group")


class References:
    """The reference models of one seed, each trained when a method first needs it, with the seconds that it took."""

    def __init__(self, base: nn.Module, parts: Parts, sizes: Sizes, seed: int) -> None:
        self.base, self.parts, self.sizes, self.seed = base, parts, sizes, seed
        self.made: dict[str, tuple[Any, float]] = {}

    def model(self) -> nn.Module:
        """One model for all domains."""
        return self._once("model", lambda: self._trained(None))  # type: ignore[no-any-return]

    def of(self, method: Method, selector: reducr.Selector) -> Any:
        """What the rule of ``method`` reads: tables where sequences are selected, live models where tokens are."""
        if not any("irreducible_loss" in need for need in selector.needs):
            return None
        if "irreducible_loss" in selector.needs:
            name, models = "model", self.model()
        else:
            name, models = "models", self._once("models", lambda: [self._trained(g) for g in range(len(DOMAINS))])
        if method.by_token:
            return reducr.Reference(models)
        return self._once(f"{name}, table", lambda: self._table(models))

    def seconds(self, method: Method, selector: reducr.Selector) -> float:
        """Seconds that the reference of ``method`` took, its table included."""
        if not any("irreducible_loss" in need for need in selector.needs):
            return 0.0
        name = "model" if "irreducible_loss" in selector.needs else "models"
        return sum(self.made[key][1] for key in (name, *(() if method.by_token else (f"{name}, table",))))

    def _trained(self, group: int | None) -> nn.Module:
        return fine_tuned(self.base, self.parts.holdout, self.sizes, seed=mixed_seed(self.seed, 3), group=group)

    def _table(self, models: Any) -> Any:
        return reducr.Reference(models, loss=sequence_loss).tabulate(batches_of(self.parts.train, 64), spec=SPEC)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.made:
            started = time.process_time()
            self.made[name] = make(), time.process_time() - started
        return self.made[name][0]


def train(method: Method, references: References, *, seed: int) -> dict[str, Any]:
    """Fine-tune a copy of the pretrained model on ``num_tokens`` selected tokens, and evaluate it."""
    parts, sizes, model = references.parts, references.sizes, copy.deepcopy(references.base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    selector = reducr.make_selector(method.rule, num_groups=len(DOMAINS), **method.options or {})
    irreducible = references.of(method, selector)
    data = parts.train + parts.holdout if method.holdout else parts.train
    started = time.process_time()
    loader = reducr.SelectiveLoader(
        batches_of(data, sizes.num_candidates // (4 if method.by_token else 1), seed=mixed_seed(seed, 4)),
        model,
        selector,
        irreducible,
        method.fraction,
        holdout=list(batches_of(parts.holdout, 100)) if selector.needs_group_holdout_loss else None,
        refresh_steps=REFRESH_STEPS if selector.needs_group_holdout_loss else None,
        loss=TokenLoss() if method.by_token else sequence_loss,
        spec=SPEC,
        seed=seed,
    )
    num_tokens, num_shuffled, num_steps = 0, 0, 0
    counts = torch.zeros(len(DOMAINS), dtype=torch.int64)
    while num_tokens < sizes.num_tokens:
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - num_tokens / sizes.num_tokens)
            num_tokens += step_on(model, optimizer, batch)
            num_steps += 1
            of_sequence = TokenLoss().is_labelled(batch["labels"]).sum(dim=1)
            num_shuffled += int(of_sequence[batch["is_shuffled"]].sum())
            counts.index_add_(0, batch["group"], of_sequence)
            if num_tokens >= sizes.num_tokens:
                break
    seconds = time.process_time() - started
    return {
        "losses": _rounded(domain_losses(model, parts.test)),
        "shares": _rounded((counts / counts.sum()).tolist()),
        "shuffled": round(num_shuffled / num_tokens, 4),
        "num_tokens": num_tokens,
        "num_steps": num_steps,
        "seconds": round(seconds, 2),
        "reference_seconds": round(references.seconds(method, selector), 2),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


# ---- table


def untrained(model: nn.Module, parts: Parts, seconds: float) -> dict[str, Any]:
    """The outcome of a model that is not trained on the training data."""
    return {"losses": _rounded(domain_losses(model, parts.test)), "reference_seconds": round(seconds, 2)}


BASELINES = {"pretrained": "pretrained model, before", "reference_model": "reference model alone"}


def run_missing(options: argparse.Namespace, out: Path) -> None:
    """Add the runs that the store does not have."""
    sizes = TINY if options.tiny else FULL
    store = RunStore.with_more(out, KEY, {"sizes": dict(vars(sizes)), "options": list(options.options)})
    texts = read_texts(options.data_dir)
    for seed in options.seeds:
        missing = [name for name in options.methods if options.again or (seed, name) not in store.runs]
        if not missing:
            continue
        parts = Parts.of(texts, sizes, seed)
        started = time.process_time()
        base = pretrained(parts, sizes, seed)
        references = References(base, parts, sizes, seed)
        store.add({"seed": seed, "method": "pretrained", **untrained(base, parts, time.process_time() - started)})
        reference = references.model()
        outcome = untrained(reference, parts, references.made["model"][1])
        store.add({"seed": seed, "method": "reference_model", **outcome})
        for name in missing:
            outcome = train(METHODS[name], references, seed=seed)
            store.add({"seed": seed, "method": name, **outcome})
            print(f"seed {seed}, {name}: {outcome}", flush=True)


def markdown_table(runs: Mapping[Key, dict[str, Any]]) -> str:
    """The table of the stored runs in Markdown."""
    seeds = sorted({key[0] for key in runs})
    columns = ("method", "worst domain", "mean", *DOMAINS, "share of tweets", "shuffled", "seconds", "of the reference")
    lines = [
        f"Seeds {', '.join(map(str, seeds))}.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    for name, label in {**BASELINES, **{name: method.label for name, method in METHODS.items()}}.items():
        outcomes = [runs[seed, name] for seed in seeds if (seed, name) in runs]
        if outcomes:
            lines.append(f"| {' | '.join([label, *cells(outcomes)])} |")
    return "\n".join(lines)


def cells(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The cells of a method's row."""
    yield mean_with_deviation([max(outcome["losses"]) for outcome in outcomes])
    yield mean_with_deviation([fmean(outcome["losses"]) for outcome in outcomes])
    for domain in range(len(DOMAINS)):
        yield f"{fmean(outcome['losses'][domain] for outcome in outcomes):.3f}"
    is_trained = "shares" in outcomes[0]
    yield f"{fmean(outcome['shares'][-1] for outcome in outcomes):.3f}" if is_trained else "–"
    yield f"{fmean(outcome['shuffled'] for outcome in outcomes):.3f}" if is_trained else "–"
    yield f"{fmean(outcome['seconds'] for outcome in outcomes):.0f}" if is_trained else "–"
    yield f"{fmean(outcome['reference_seconds'] for outcome in outcomes):.0f}"


def mean_with_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    result = estimate(values)
    assert result is not None
    return f"{result.mean:.3f} ± {result.deviation or 0:.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Make the missing runs, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 to 2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    options = parse_arguments(parser, arguments)
    out = options.out or results.ROOT / "benchmarks" / "language_model.json"
    run_if_requested(parser, options, out, run_missing)
    text = markdown_table(RunStore.read(out, KEY).runs)
    print(text)
    if options.out is None:
        results.put_between(results.ROOT / "docs" / "results.md", text, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
