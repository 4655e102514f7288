"""Language models, taggers and collators that drop columns in the Trainer of transformers, against plain loops."""

from functools import partial

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import reducr
from hugging_face import Recording, make_arguments
from reducr.batch import CarryingCollator
from reducr.functional import TokenLoss, sequence_loss
from reducr.hugging_face import SelectiveTrainer
from reference.tokens import by_token, sequence_losses, token_losses

NUM_WORDS, NUM_DOMAINS, NUM_CANDIDATES, FRACTION, SIZE = 30, 3, 12, 0.25, 40


@pytest.fixture(scope="module")
def tokenizer():
    names = ["[PAD]", "[EOS]", *(f"w{number}" for number in range(NUM_WORDS - 2))]
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[EOS]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")


def make_data(size=SIZE, *, seed=0, columns=("group", "idx"), targets=None):
    """Unpadded sequences of three to nine words, of three domains in turn."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(size):
        length = int(torch.randint(3, 10, (), generator=generator))
        row = {"input_ids": torch.randint(2, NUM_WORDS, (length,), generator=generator).tolist()}
        if targets == "tags":
            row["labels"] = torch.randint(4, (length,), generator=generator).tolist()
        extra = {"group": number % NUM_DOMAINS, "idx": number, "note": f"text {number}"}
        rows.append(row | {name: extra[name] for name in columns})
    return datasets.Dataset.from_list(rows)


def make_model(seed):
    torch.manual_seed(seed)
    sizes = {"n_positions": 16, "n_layer": 1, "n_embd": 16, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=NUM_WORDS, loss_type="ForCausalLM", **sizes, **dropout))


def naming_collator(samples):
    """Pads, and names what it keeps, as the collators of trl do: idx, group and everything else are dropped."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    pad = [(sample["input_ids"], longest - len(sample["input_ids"])) for sample in samples]
    return {
        "input_ids": torch.tensor([ids + [0] * more for ids, more in pad]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * more for ids, more in pad]),
        "labels": torch.tensor([ids + [-100] * more for ids, more in pad]),
    }


class Keeping(Recording):
    """Also keeps the labels that were trained on, and the group of each selected example."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.labels, self.groups = [], []

    def compute_loss(self, model, inputs, *arguments, **options):
        self.labels.append(inputs["labels"].clone())
        assert set(inputs) == {"input_ids", "attention_mask", "labels"}
        return super().compute_loss(model, inputs, *arguments, **options)

    def training_step(self, model, inputs, *arguments, **options):
        loss = super().training_step(model, inputs, *arguments, **options)
        self.groups.append(self.downsampler.selected.group.clone())
        return loss


def make_trainer(folder, *, rule="rho_loss", loss=sequence_loss, data=None, collator=None, trainer=None, **options):
    steps = {"step_size": 0.05} if rule == "reducr" else {}
    reference = reducr.Reference([make_model(s) for s in (7, 8, 9)] if rule == "reducr" else make_model(9))
    given = {"model": make_model(0), "irreducible": reference} | options
    return (trainer or Keeping)(
        args=make_arguments(
            folder, per_device_train_batch_size=NUM_CANDIDATES, num_train_epochs=1, dataloader_pin_memory=False
        ),
        train_dataset=make_data() if data is None else data,
        data_collator=naming_collator if collator is None else collator,
        selector=reducr.make_selector(rule, num_groups=NUM_DOMAINS, **steps),
        fraction=FRACTION,
        loss=loss,
        short_batches="keep",
        **given,
    )


@torch.no_grad()
def logits_of(model, rows):
    """Of each sequence by itself, without padding."""
    model.eval()
    return [model(input_ids=torch.tensor([row["input_ids"]])).logits[0].tolist() for row in rows]


def best(scores, count):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def test_sequences_of_a_collator_that_drops_index_and_group(tmp_path):
    """A learning rate of zero, so that all picks can be computed with the model as it is."""
    trainer = make_trainer(tmp_path)
    trainer.args.learning_rate = 0.0
    trainer.train()
    rows = make_data()
    assert len(trainer.seen) == 4
    for seen, picked, groups in zip(trainer.seen, trainer.picked, trainer.groups, strict=True):
        candidates = [rows[position] for position in seen.tolist()]
        labels = [row["input_ids"] for row in candidates]
        model_loss, irreducible = (
            sequence_losses(logits_of(model, candidates), labels) for model in (make_model(0), make_model(9))
        )
        excess = [a - b for a, b in zip(model_loss, irreducible, strict=True)]
        expected = best(excess, max(1, int(FRACTION * len(candidates))))
        assert picked.tolist() == [candidates[position]["idx"] for position in expected]
        assert groups.tolist() == [candidates[position]["group"] for position in expected]


def test_tokens_of_a_collator_that_drops_index_and_group(tmp_path):
    trainer = make_trainer(tmp_path, loss=TokenLoss())
    trainer.args.learning_rate = 0.0
    trainer.train()
    rows = make_data()
    for seen, kept in zip(trainer.seen, trainer.labels, strict=True):
        candidates = [rows[position] for position in seen.tolist()]
        labels = [row["input_ids"] for row in candidates]
        losses = [token_losses(logits_of(model, candidates), labels) for model in (make_model(0), make_model(9))]
        expected = by_token(*losses, fraction=FRACTION)
        assert set(map(tuple, torch.nonzero(kept != -100).tolist())) == expected
    assert sum(trainer.report().group_counts) == trainer.report().num_selected


@pytest.mark.parametrize("loss", [sequence_loss, TokenLoss()], ids=["sequence", "token"])
def test_the_trainer_is_a_loop_of_ones_own(tmp_path, loss):
    """REDUCR with a reference model for each domain; the own loop carries index and group with `indexed`."""
    holdout = make_data(9, seed=2, columns=("group",))
    model = make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = make_trainer(
        tmp_path,
        rule="reducr",
        loss=loss,
        holdout_dataset=holdout,
        refresh_steps=2,
        model=model,
        optimizers=(optimizer, constant),
    )
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    model, data = make_model(0), reducr.indexed(make_data(columns=("group",)))
    order = [seen.tolist() for seen in trainer.seen]
    candidates = DataLoader(data, batch_sampler=order, collate_fn=data.collating(naming_collator))
    clean = reducr.indexed(holdout)
    loader = reducr.SelectiveLoader(
        candidates,
        model.train(),
        reducr.make_selector("reducr", num_groups=NUM_DOMAINS, step_size=0.05),
        reducr.Reference([make_model(seed) for seed in (7, 8, 9)]),
        FRACTION,
        loss=loss,
        short_batches="keep",
        holdout=DataLoader(clean, batch_size=8, collate_fn=clean.collating(naming_collator)),
        refresh_steps=2,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch, expected in zip(loader, trainer.labels, strict=True):
        assert set(batch) == {"input_ids", "attention_mask", "labels", "group"}
        assert torch.equal(batch["labels"], expected)
        optimizer.zero_grad()
        model(**{name: batch[name] for name in batch if name != "group"}).loss.backward()
        optimizer.step()
    for (name, value), other in zip(model.state_dict().items(), trainer.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    ours, theirs = loader.report(), trainer.report()
    assert ours.group_counts == theirs.group_counts
    assert ours.group_weights == theirs.group_weights
    assert (ours.num_candidates, ours.num_selected) == (theirs.num_candidates, theirs.num_selected)


def test_a_table_is_read_by_the_index_of_a_dropping_collator(tmp_path):
    data = reducr.indexed(make_data(columns=("group",)))
    loader = DataLoader(data, batch_size=7, collate_fn=data.collating(naming_collator))
    live = reducr.Reference(make_model(9), loss=sequence_loss)
    labels = []
    for reference in (live, live.tabulate(loader)):
        trainer = make_trainer(tmp_path, data=data, irreducible=reference, trainer=SelectiveTrainer)
        kept = labels_of_every_step(trainer)
        trainer.train()
        labels.append(kept)
    assert len(labels[0]) == 4
    assert all(map(torch.equal, *labels))


def labels_of_every_step(trainer):
    """A list to which every step appends the labels that it trains on."""
    labels, compute_loss = [], trainer.compute_loss

    def keep(model, inputs, *arguments, **options):
        labels.append(inputs["labels"].clone())
        return compute_loss(model, inputs, *arguments, **options)

    trainer.compute_loss = keep
    return labels


def test_collators_of_transformers_keep_the_columns(tmp_path, tokenizer):
    data = make_data()
    samples = [{name: value for name, value in row.items() if name != "note"} for row in data][:5]
    for collator in (DataCollatorForLanguageModeling(tokenizer, mlm=False), DataCollatorWithPadding(tokenizer)):
        batch = CarryingCollator(collator, columns=("idx", "group"))(samples)
        assert batch["idx"].tolist() == [0, 1, 2, 3, 4]
        assert batch["group"].tolist() == [0, 1, 2, 0, 1]
        assert batch["input_ids"].shape == batch["attention_mask"].shape
    trainer = make_trainer(tmp_path, collator=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    trainer.train()
    assert trainer.report().num_batches == 4


def test_sequence_tagging(tmp_path, tokenizer):
    """Labels at the places of their tokens."""

    def tagger(seed):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForTokenClassification(BertConfig(vocab_size=NUM_WORDS, num_labels=4, **sizes, **dropout))

    rows = make_data(targets="tags")
    trainer = make_trainer(
        tmp_path,
        loss=partial(sequence_loss, is_causal=False),
        data=rows,
        model=tagger(0),
        irreducible=reducr.Reference(tagger(9)),
        collator=DataCollatorForTokenClassification(tokenizer),
    )
    trainer.args.learning_rate = 0.0
    trainer.train()
    for seen, picked in zip(trainer.seen, trainer.picked, strict=True):
        candidates = [rows[position] for position in seen.tolist()]
        labels = [row["labels"] for row in candidates]
        model_loss, irreducible = (
            sequence_losses(logits_of(model, candidates), labels, is_causal=False) for model in (tagger(0), tagger(9))
        )
        excess = [a - b for a, b in zip(model_loss, irreducible, strict=True)]
        assert picked.tolist() == [candidates[i]["idx"] for i in best(excess, max(1, int(FRACTION * len(candidates))))]


def test_a_sequence_to_sequence_model_is_scored_with_its_decoder_inputs():
    """Labels are not given to the model while it scores: the batch has decoder_input_ids, made by its collator."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=NUM_WORDS, decoder_start_token_id=0, **sizes))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, NUM_WORDS, (8, 5), generator=generator)
    labels[:3, 3:] = -100
    batch = {
        "input_ids": torch.randint(2, NUM_WORDS, (8, 6), generator=generator),
        "labels": labels,
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
        "group": torch.arange(8) % 2,
    }
    core = reducr.Downsampler(
        reducr.make_selector("train_loss", num_groups=2, sampler="top_k"),
        fraction=0.25,
        loss=TokenLoss(is_causal=False),
    )
    core.prepare(model)
    selected = core.select(batch, model)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], labels=labels).logits
    losses = token_losses(logits.tolist(), labels.tolist(), is_causal=False)
    expected = by_token(losses, [dict.fromkeys(places, 0.0) for places in losses], fraction=0.25)
    assert set(map(tuple, torch.nonzero(selected["labels"] != -100).tolist())) == expected


def test_columns_that_cannot_be_carried_are_refused(tokenizer):
    collator = CarryingCollator(naming_collator, columns=("idx", "group"))
    with pytest.raises(ValueError, match=r"Column 'group' must hold one integer per example; got 'news'"):
        collator([{"input_ids": [1], "group": "news"}])
    assert "idx" not in collator([{"input_ids": [1], "idx": "a"}, {"input_ids": [2], "idx": "b"}])
    rows = [{"input_ids": [3, 4], "labels": [3, 4], "group": 1} for _ in range(3)]
    packing = CarryingCollator(DataCollatorWithFlattening(), columns=("group",))
    with pytest.raises(ValueError, match=r"The collator made 1 rows of 3 examples.*use a collator that pads"):
        packing(rows)
    with pytest.raises(ValueError, match=r"returned a list, which cannot carry the columns group"):
        CarryingCollator(list, columns=("group",))(rows)
    with pytest.raises(TypeError, match="`collate_fn` must be a function of a list of samples; got int"):
        CarryingCollator(3, columns=("group",))
    padding = CarryingCollator(DataCollatorWithPadding(tokenizer), columns=("group",))
    assert padding.tokenizer is tokenizer
