"""Selection in the Trainer of transformers is the plain loop: same points, same parameters, also after a resume."""

import json
import random
import re
import signal
import time
from contextlib import nullcontext

import datasets
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from transformers import (
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

import forked
import hugging_face
import reducr
from hugging_face import (
    FRACTION,
    KILLED,
    NUM_CANDIDATES,
    NUM_POINTS,
    REFRESH_STEPS,
    SEED,
    Recording,
    Texts,
    make_arguments,
    make_model,
    make_parts,
    make_trainer,
)
from reducr.batch import BatchSpec
from reducr.hugging_face import SelectiveTrainer, SelectiveTrainerMixin
from reducr.scoring import Scoring
from selecting import under_autocast


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(trainer, other):
    for (key, value), theirs in zip(trainer.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, theirs), key
    selector, others = (one.downsampler.selector.state_dict() for one in (trainer, other))
    for key, value in selector.items():
        torch.testing.assert_close(value, others[key], rtol=0, atol=0, equal_nan=True)
    report, others = trainer.report(), other.report()
    assert (report.num_steps, report.num_batches, report.group_counts) == (
        others.num_steps,
        others.num_batches,
        others.group_counts,
    )


class InOrder(BatchSampler):
    """Batches of the points that another loop has seen, epoch by epoch."""

    def __init__(self, epochs):
        self.epochs, self.epoch = epochs, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.epochs[self.epoch])

    def __iter__(self):
        return iter(self.epochs[self.epoch])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reducr", {}),
        ("reducr", {"gradient_accumulation_steps": 2}),
        ("reducr", {"bf16": True}),
        ("reducr", {"scoring": Scoring(mode="eval"), "refresh_steps": None}),
        ("rho_loss", {"gradient_accumulation_steps": 4}),
        ("train_loss", {}),
        ("uniform", {}),
        ("divbs", {}),
        ("rs2", {"gradient_accumulation_steps": 2}),
        ("group_dro", {}),
        ("infobatch", {"gradient_accumulation_steps": 4}),
    ],
)
def test_the_same_points_and_parameters_as_the_plain_loop(tmp_path, name, options):
    """With dropout, shuffling, clipping and a short last batch; a step of 2 or 4 batches, and of what is left over."""
    trainer = make_trainer(tmp_path, name=name, max_grad_norm=1.0, lr_scheduler_type="linear", **options)
    trainer.train()
    num_batches = -(-NUM_POINTS // NUM_CANDIDATES)
    assert len(trainer.seen) == 3 * num_batches
    assert [len(batch) for batch in trainer.seen[-2:]] == [NUM_CANDIDATES, 10]
    assert [len(batch) for batch in trainer.picked[-2:]] == [8, 2]

    accumulate_steps = options.get("gradient_accumulation_steps", 1)
    epochs = [[part.tolist() for part in trainer.seen[first : first + 9]] for first in (0, 9, 18)]
    data = Texts(columns=("idx",))
    holdout = list(DataLoader(Texts(60, seed=2, columns=()), batch_size=8, collate_fn=collate))
    (selector, irreducible), model = make_parts(name), make_model()
    loader = reducr.SelectiveLoader(
        DataLoader(data, batch_sampler=InOrder(epochs), collate_fn=collate),
        model,
        selector,
        irreducible,
        FRACTION,
        holdout=holdout,
        refresh_steps=options.get("refresh_steps", REFRESH_STEPS),
        scoring=options.get("scoring"),
        accumulate_steps=accumulate_steps,
        weights_examples=selector.weights_examples,
        seed=SEED,
    )
    num_steps = 3 * -(-num_batches // accumulate_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    torch.manual_seed(SEED)
    model.train()
    picked = []
    for _ in range(3):
        for number, batch in enumerate(under_autocast(loader, torch.bfloat16 if "bf16" in options else None)):
            of = min(accumulate_steps, num_batches - number // accumulate_steps * accumulate_steps)
            with torch.autocast("cpu", dtype=torch.bfloat16) if "bf16" in options else nullcontext():
                logits = model(batch["input_ids"]).logits
            if selector.weights_examples:
                losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
                loss = (losses * loader.example_weights).mean()
            else:
                loss = nn.functional.cross_entropy(logits.float(), batch["labels"])
            (loss / of).backward()
            if (number + 1) % accumulate_steps == 0 or number + 1 == num_batches:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            picked.append(batch["idx"])
    loader.state_dict()  # the last batch counts now, too
    assert all(torch.equal(one, two) for one, two in zip(trainer.picked, picked, strict=True))
    assert loader.report().num_steps == num_steps == trainer.state.global_step
    plain = Recording.__new__(Recording)
    plain.model, plain.downsampler = model, loader.downsampler
    assert_same(trainer, plain)


def collate(points):
    return default_data_collator([{k: v for k, v in point.items() if k != "note"} for point in points])


RESUMED = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "refresh_steps": None},
    "by_length": {"train_sampling_strategy": "group_by_length"},
    "unseeded_sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "evaluated": {"eval_strategy": "epoch", "eval_dataset": Texts(50, seed=5)},
    "workers": {"dataloader_num_workers": 2},
    "within_a_budget": {"budget": 0.4},
}


class SavingAt(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, arguments, state, control, **_):
        control.should_save = state.global_step in self.steps


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, name, is_exhaustive):
    """From the end of an epoch, from its middle, from the last step but one; with dropout and shuffling."""
    num_steps, steps = (15, (5, 7, 14)) if name == "accumulated" else (27, (9, 13, 26))
    whole = make_trainer(tmp_path / "whole", callbacks=[SavingAt(steps)], **RESUMED[name])
    whole.train()
    assert whole.state.global_step == num_steps
    for step in steps if is_exhaustive or name == "plain" else steps[1:2]:
        again = make_trainer(tmp_path / "again", **RESUMED[name])
        again.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{step}"))
        seen = step // 5 * 9 + step % 5 * 2 if name == "accumulated" else step
        assert len(again.picked) == 27 - seen
        assert all(torch.equal(one, two) for one, two in zip(whole.picked[seen:], again.picked, strict=True))
        assert_same(again, whole)


def state_in(checkpoint):
    """Everything in a checkpoint that a run depends on or tells."""
    (selection,) = torch.load(next((checkpoint / "reducr").glob("*.ckpt")), weights_only=True)["ranks"]
    selection.pop("seconds")
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    logs = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {
        "model": load_file(checkpoint / "model.safetensors"),
        "selection": selection,
        "optimizer": optimizer,
        "logs": [{key: value for key, value in log.items() if "_second" not in key} for log in logs],
    }


@pytest.mark.long
@pytest.mark.parametrize("num_kills", [20])
def test_a_run_killed_at_random_moments_goes_on_bit_for_bit(tmp_path, num_kills):
    """SIGKILL while starting, scoring, training and writing checkpoints; always on from the newest whole one."""
    folder, draw = tmp_path / "killed", random.Random(0)
    make_trainer(tmp_path / "whole", **KILLED).train()
    folder.mkdir()
    statuses = []
    while statuses[-1:] != [0]:
        process = forked.start([hugging_face.__file__, folder])
        if len(statuses) < num_kills:
            while not (folder / "has_begun").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.15))
            process.kill()
            (folder / "has_begun").unlink()
        statuses.append(process.wait(120))
        assert statuses[-1] in (0, -signal.SIGKILL), process.communicate()
    assert len(statuses) > 3
    whole, killed = (state_in(path / "checkpoint-135") for path in (tmp_path / "whole", folder))
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    """The newest was being written, the one before was altered: the one before that is gone on from."""
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    state = tmp_path / "checkpoint-27/trainer_state.json"
    state.write_text(state.read_text()[:40])
    (altered,) = tmp_path.glob("checkpoint-24/reducr/*.ckpt")
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    again = make_trainer(tmp_path, **options)
    with pytest.warns(RuntimeWarning) as caught:
        again.train(resume_from_checkpoint=True)
    texts = [str(warning.message) for warning in caught]
    assert "checkpoint-27 is incomplete (" in texts[0]
    assert "is damaged (truncated or altered)" in texts[1]
    assert re.search("checkpoint-24 is incomplete .* The one before it is used, if there is one", texts[2])
    assert len(again.picked) == 27 - 20
    assert_same(again, whole)


def test_faults_of_checkpoints(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(
        ValueError, match=r"There is no complete checkpoint in .*\. Train without resume_from_checkpoint"
    ):
        trainer.train(resume_from_checkpoint=True)
    others = Trainer(make_model(), make_arguments(tmp_path, max_steps=1, save_strategy="steps"), train_dataset=Texts())
    others.train()
    with pytest.raises(ValueError, match=r"checkpoint-1 has no selection state .*another Trainer wrote it"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps")
    trainer.train()
    (path,) = tmp_path.glob("checkpoint-2/reducr/*.ckpt")
    path.write_bytes(path.read_bytes()[:100])
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(truncated or altered\)"),
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


class Stream(IterableDataset):
    """The texts, with no index to read them by and no length, in a new order every pass."""

    def __init__(self):
        self.texts, self.epoch = Texts(), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(NUM_POINTS, generator=torch.Generator().manual_seed(self.epoch))
        for position in order.tolist():
            point = self.texts[position]
            del point["note"]
            yield point


def test_streams(tmp_path):
    """Resumed exactly in their first pass, and with an error in a later one, where the Trainer loses its place."""
    options = {"data": Stream(), "max_steps": 13, "save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    assert [len(batch) for batch in whole.seen] == [40] * 8 + [10] + [40] * 4
    assert not torch.equal(whole.seen[0], whole.seen[9])
    again = make_trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert len(again.picked) == 8
    assert_same(again, whole)
    again = make_trainer(tmp_path / "again", **options)
    with pytest.raises(
        ValueError, match=r"was saved in pass 1 .* over a data set without a length, and the Trainer can resume"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    with pytest.raises(ValueError, match="so its epoch may have no end to refresh"):
        make_trainer(tmp_path, refresh_steps="epoch", **options)


def test_the_model_sees_neither_index_nor_group_nor_labels_it_is_scored_with(tmp_path):
    """Groups that are not the labels; columns that the model does not take, in training, evaluation and prediction."""
    columns = ("idx", "site")
    spec = BatchSpec(target="labels", index="idx", group="site")
    trainer = make_trainer(
        tmp_path,
        data=Texts(columns=columns),
        eval_dataset=Texts(50, columns=columns),
        holdout_dataset=Texts(60, columns=columns),
        selector=reducr.make_selector("train_loss", num_groups=3),
        spec=spec,
        gradient_accumulation_steps=3,
    )
    given = []
    trainer.model.register_forward_pre_hook(
        lambda model, inputs, named: given.append((torch.is_grad_enabled(), set(named))), with_kwargs=True
    )
    trainer.train()
    assert all(names == {"input_ids"} for is_training, names in given if not is_training)
    assert sum(is_training for is_training, _ in given) == 27 < sum(not is_training for is_training, _ in given)
    groups = torch.cat(trainer.picked) % 3
    assert trainer.report().group_counts == torch.bincount(groups, minlength=3).tolist()
    assert trainer.report().num_steps == 9
    assert set(trainer.evaluate()) >= {"eval_loss"}
    assert trainer.predict(Texts(50, columns=columns)).predictions.shape == (50, 4)


def test_a_data_set_with_a_tokenizer(tmp_path):
    """datasets.Dataset and DataCollatorWithPadding, whose batches are no plain dicts."""
    numbers = {"[UNK]": 0, "[PAD]": 1} | {f"w{number}": number for number in range(2, 50)}
    words = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    texts = Texts()
    lines = [" ".join(f"w{word}" for word in row[: 3 + number % 6]) for number, row in enumerate(texts.words)]
    data = datasets.Dataset.from_dict({"text": lines, "label": texts.labels.tolist(), "idx": list(range(NUM_POINTS))})
    data = data.map(lambda rows: tokenizer(rows["text"]), batched=True)
    trainer = make_trainer(tmp_path, data=data, holdout_dataset=data.select(range(60)), processing_class=tokenizer)
    batches = []
    trainer.model.register_forward_pre_hook(
        lambda model, inputs, named: batches.append(named["input_ids"]) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    trainer.train()
    assert len(batches) == 27
    for batch, picked in zip(batches, trainer.picked, strict=True):
        for row, index in zip(batch, picked.tolist(), strict=True):
            assert tokenizer.decode(row, skip_special_tokens=True) == lines[index]


@pytest.mark.parametrize(("scoring_mode", "passes"), [("train", 2), ("eval", 1), ("train_frozen_statistics", 1)])
def test_an_image_classifier(tmp_path, scoring_mode, passes):
    """One with batch statistics, which the scoring pass moves in train mode alone."""
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=10
    )
    digits = load_digits()
    rows = {"pixel_values": (digits.images[:400, None] / 16).astype("float32").tolist(), "label": digits.target[:400]}
    data = datasets.Dataset.from_dict(rows | {"idx": range(400)}).with_format("torch")
    trainer = SelectiveTrainer(
        ResNetForImageClassification(config),
        make_arguments(tmp_path, num_train_epochs=2),
        train_dataset=data,
        selector=reducr.make_selector("train_loss", num_groups=10),
        scoring=Scoring(mode=scoring_mode),
    )
    trainer.train()
    tracked = {int(value) for name, value in trainer.model.named_buffers() if name.endswith("num_batches_tracked")}
    assert tracked == {20 * passes}
    report = trainer.report()
    assert (report.num_candidates, report.num_selected, report.fraction) == (800, 80, 0.1)


def test_a_loss_of_ones_own(tmp_path):
    """Given as compute_loss_func or by a Trainer it is mixed into: the mean over the selected points, as without it."""

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    class Mixed(SelectiveTrainerMixin, Own):
        pass

    def loss(outputs, labels, num_items_in_batch=None):
        assert num_items_in_batch is None
        return nn.functional.cross_entropy(outputs.logits, labels)

    options = {"gradient_accumulation_steps": 2}
    plain = make_trainer(tmp_path, **options)
    plain.train()
    given = make_trainer(tmp_path, compute_loss_func=loss, **options)
    given.train()
    assert_same(given, plain)
    mixed = make_trainer(tmp_path, trainer=Mixed, **options)
    mixed.train()
    assert_same(mixed, plain)

    class Wrong(SelectiveTrainer):
        compute_loss = Own.compute_loss

    with pytest.raises(ValueError, match=r"distributed='global' multiplies the loss, which Wrong\.compute_loss would"):
        make_trainer(tmp_path, trainer=Wrong, distributed="global")


def test_another_training_begins_anew(tmp_path):
    """With model_init, a second call of train() is the first one again."""
    trainer = make_trainer(tmp_path, model_init=lambda: make_model(dropout=0.1), max_steps=5)
    trainer.train()
    first, trainer.picked = trainer.picked, []
    weights = trainer.downsampler.selector.group_weights
    trainer.train()
    assert all(torch.equal(one, two) for one, two in zip(first, trainer.picked, strict=True))
    assert torch.equal(weights, trainer.downsampler.selector.group_weights)
    assert trainer.report().num_steps == 5


def test_logs(tmp_path):
    """The metrics of the last step, beside the loss; callbacks find the selector updated."""
    seen = []

    class Watching(TrainerCallback):
        def on_step_end(self, arguments, state, control, **_):
            seen.append(trainer.report().num_steps == state.global_step)

    trainer = make_trainer(tmp_path, logging_steps=9, num_train_epochs=1, callbacks=[Watching()])
    trainer.train()
    logs = trainer.state.log_history[0]
    weights = trainer.downsampler.selector.group_weights.tolist()
    assert [logs[f"group_weight/{group}"] for group in range(4)] == weights
    assert (logs["select/fraction"], logs["select/num_non_finite"]) == (8 / 40, 0)
    assert seen == [True] * 9


class OnlyLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, input_ids, labels=None):
        logits = self.linear(input_ids.float())
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}


FAULTS = {
    "a wrong name": ({"selector": "reduce"}, ValueError, r"unknown selector 'reduce'\. Did you mean 'reducr'"),
    "an option elsewhere": ({"scoring_mode": "eval"}, ValueError, r"no option 'scoring_mode': pass `scoring=reducr.Sc"),
    "an option of a rule": ({"step_size": 1.0}, TypeError, "unexpected keyword argument 'step_size'"),
    "percent": ({"fraction": 10}, ValueError, r"`fraction` must be in \(0, 1\].*For 10 percent, pass 0.1"),
    "no irreducible": ({"irreducible": None}, ValueError, "'reducr' needs irreducible losses"),
    "mode": ({"distributed": "globl"}, ValueError, "unknown distributed mode 'globl'"),
    "no holdout": ({"holdout_dataset": None, "refresh_steps": None}, ValueError, "needs the holdout loss before its"),
    "a loader": (
        {"holdout_dataset": DataLoader(Texts(8), batch_size=8)},
        TypeError,
        "`holdout_dataset` must be a data set; got a DataLoader. Pass its `dataset`.",
    ),
    "refresh": ({"holdout_dataset": None}, ValueError, "refresh_steps=4 has no effect without `holdout`"),
    "no logits": ({"model": OnlyLoss()}, ValueError, "must return a tensor of logits .*, or an output with `logits`"),
    "groups": ({"spec": BatchSpec(target="labels", group="town")}, ValueError, "The batch has no group at 'town'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path, name):
    """All before the first step."""
    options, kind, text = FAULTS[name]
    steps = []

    class Watching(TrainerCallback):
        def on_step_end(self, *_, **__):
            steps.append(1)

    with pytest.raises(kind, match=text):
        make_trainer(tmp_path, callbacks=[Watching()], **options).train()
    assert not steps


class OwnLoss(SelectiveTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        raise AssertionError("not reached")


def test_weights_of_points_and_a_loss_of_ones_own(tmp_path):
    with pytest.raises(
        ValueError, match=r"'group_dro' weights the loss of each example, which OwnLoss.compute_loss would"
    ):
        make_trainer(tmp_path, name="group_dro", trainer=OwnLoss)
    message = "'infobatch' weights the loss of each example, and this Trainer has a loss of its own .* Pass `loss=`"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, name="infobatch", label_smoothing_factor=0.1)
    loss = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    trainer = make_trainer(tmp_path, name="infobatch", label_smoothing_factor=0.1, loss=loss, max_steps=2)
    trainer.train()
    assert len(trainer.picked) == 2


def test_several_gpus_in_one_process_are_refused(tmp_path):
    arguments = make_arguments(tmp_path)
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 GPUs in one process \(DataParallel\) are not supported. Start one"):
        make_trainer(tmp_path, args=arguments)
