"""Selection in the Trainer of transformers, for sequence and image classifiers."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from reducr._internal.distributed import all_gather, check_mode, num_ranks, rank, shard
from reducr._internal.files import read_regular_text
from reducr._internal.rng import random_state, set_random_state
from reducr._internal.seeds import mixed_seed
from reducr.batch import INDEX_KEY, BatchSpec, CarryingCollator, logits_of
from reducr.batch.report import SelectionReport
from reducr.downsampler import Downsampler
from reducr.scoring import (
    IrreducibleLookup,
    check_not_moved,
    holdout_of,
    names_of_rule,
    per_example_losses,
    split_options,
)
from reducr.selectors import Selector
from reducr.training.checkpoints import Checkpoints
from reducr.training.loader import check_has_end

__all__ = ["SelectiveTrainer", "SelectiveTrainerMixin"]

_FOLDER = "reducr"
_STATE_NAME = "trainer_state.json"
_SELECTION_OPTIONS = {"loss", "spec", "scoring", "auxiliary", "distributed", "short_batches"}
_COLUMNS = ("index", "idx", "group", "groups", INDEX_KEY)

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object  # the class after the mixin is whichever Trainer it is mixed into


class SelectiveTrainerMixin(_Base):
    """Train on the best part of every batch: ``class MyTrainer(SelectiveTrainerMixin, AnyTrainer)``.

    ``per_device_train_batch_size`` is the number of candidates. The model scores them as it trains, in its precision
    and without their labels, and ``compute_loss`` gets the best of them. The loss of a step is the mean over the
    selected examples of each batch, and the mean of these over its batches with ``gradient_accumulation_steps``. The
    selector is updated once per optimizer step.

    The index and group columns of the training data are kept, carried around a ``data_collator`` that would drop them,
    and removed before the model is called. The keys of ``Downsampler.metrics``, such as ``select/fraction`` and
    ``group_weight/g``, are logged beside the loss.

    Checkpoints hold the state of the selection in the folder ``reducr``. ``train(resume_from_checkpoint=True)``
    continues from the newest complete one. On CPU that is exact, bit for bit, in the middle of an epoch too, unless the
    data set itself draws random numbers: the Trainer skips the batches that it has seen, without their draws.

    Args:
        arguments: of the Trainer.
        selector: the rule, whose state is part of the checkpoints; or its name. Groups are then counted from
            ``holdout_dataset``, and the rule's options are given beside the others, such as ``step_size=1e-3``.
        irreducible: source of irreducible losses, for the rules that need them: anything with ``lookup(batch)``.
        fraction: fraction of every batch to train on, in (0, 1]; rounded down, but at least one example.
        holdout_dataset: the clean holdout set, read like ``train_dataset``, or a ``Holdout`` of it; gives the
            group-holdout loss before the first step and at every refresh.
        refresh_steps: optimizer steps between two evaluations of it; ``"epoch"`` for the end of every epoch; None for a
            default that keeps the loss fresh at a bounded cost, see ``Holdout``.
        holdout_fraction: share of the examples of each step that are drawn from it instead of being selected, in
            [0, 1).
        options: ``loss`` (of logits and labels), ``spec``, ``scoring``, ``auxiliary``, ``distributed`` and
            ``short_batches`` of ``Downsampler``; everything else goes to the Trainer. A Trainer with a loss of its own
            needs ``loss`` for rules that weight examples, which train on it. ``spec`` may be left out where columns are
            called ``labels``, ``idx`` or ``index``, and ``group`` or ``groups``. ``args.seed`` seeds the selection too.

    Raises:
        ValueError: for an option out of range, several ranks without ``distributed``, several GPUs in one process, or a
            data set without a length whose holdout loss would never be refreshed; before the first step if the holdout
            loss is needed and missing, or a batch cannot be read or scored.
        TypeError: for a selector or irreducible of another kind.
    """

    downsampler: Downsampler
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *arguments: Any,
        selector: Selector | str,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        holdout_dataset: Any = None,
        refresh_steps: int | str | None = None,
        holdout_fraction: float | None = None,
        **options: Any,
    ) -> None:
        names = {*_SELECTION_OPTIONS, *names_of_rule(selector, options)}
        check_not_moved("SelectiveTrainer", options.keys() - names, {"holdout": "`holdout_dataset=`, a data set"})
        selection = {name: options.pop(name) for name in names & options.keys()}
        split_options("SelectiveTrainer", Downsampler, selector, selection)
        self._order = torch.Generator()
        self._extra_columns = _extra_columns(selection.get("spec"))
        self._loss_weight = 1.0
        self._example_weights: Tensor | None = None
        self._start: Any = None
        super().__init__(*arguments, **options)
        self.data_collator = CarryingCollator(self.data_collator, columns=self._extra_columns)
        holdout = holdout_of(holdout_dataset, refresh_steps, holdout_fraction)
        if holdout is not None:
            holdout = replace(holdout, batches=self._holdout_batches(holdout.batches))
        self.downsampler = Downsampler(
            selector, irreducible, fraction=fraction, holdout=holdout, seed=self.args.seed, **selection
        )
        self.downsampler.check_model(self.model)  # type: ignore[arg-type]  # the Trainer has made it
        self._check_example_weights()
        if self.downsampler.holdout.refreshes_at_epoch_ends and self.train_dataset is not None:
            check_has_end(self.train_dataset)  # type: ignore[arg-type]  # one that can be indexed has a length
        self._check_processes()
        self._untrained = copy.deepcopy(self.downsampler.state_dict()) if self.model_init is not None else None
        self.callback_handler.callbacks.insert(0, _StepCallback(self))

    def report(self) -> SelectionReport:
        """Return what has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Train as the Trainer does.

        Raises:
            ValueError: if there is no checkpoint to resume from, or it is damaged or has no selection state.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint, self._start = _newest_whole(Path(str(self.args.output_dir)))
        elif resume_from_checkpoint:
            self._start = _read(Path(resume_from_checkpoint))
        else:
            self._start = copy.deepcopy(self._untrained or self.downsampler.state_dict())
        self._is_resuming = bool(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *arguments, **options)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Select from the candidates ``inputs``, and let the Trainer step with the selected examples."""
        inputs = self._prepare_inputs(inputs)
        if self.downsampler.skips(inputs):
            return torch.zeros((), device=self.args.device)  # no gradients, so the optimizer changes nothing
        with self.accelerator.autocast():
            selected = self.downsampler.select(inputs, self.model_wrapped)
        self._loss_weight = self.downsampler.loss_weight
        self._example_weights = self.downsampler.example_weights
        try:
            # without num_items_in_batch, which counts the candidates
            loss: torch.Tensor = super().training_step(model, self._without_columns(selected))
        finally:
            self._loss_weight, self._example_weights = 1.0, None
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *arguments: Any, **options: Any
    ) -> Any:
        """Return the Trainer's loss, in training multiplied by the ``loss_weight`` of the selected examples.

        For rules that weight examples it is the weighted mean of ``loss``.
        """
        result: Any
        if self._example_weights is not None:
            result = super().compute_loss(model, inputs, True, *arguments, **options)
            targets = self.downsampler.returned.target  # type: ignore[union-attr]  # training_step has selected
            losses = per_example_losses(logits_of(result[1]), targets, self.downsampler.loss)
            weighted = (losses * self._example_weights).mean() * self._loss_weight
            return (weighted, *result[1:]) if return_outputs else weighted
        result = super().compute_loss(model, inputs, return_outputs, *arguments, **options)
        if self._loss_weight == 1:
            return result
        return (result[0] * self._loss_weight, *result[1:]) if return_outputs else result * self._loss_weight

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's loader of candidates, without a last batch that is too short to select from."""
        drops_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops_last or bool(self._short_sizes())
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = drops_last

    def _short_sizes(self) -> list[int] | None:
        """Sizes of the last batch, if it is too short, and of a full one. Several ranks fill theirs."""
        size, data = int(self._train_batch_size), self.train_dataset
        if num_ranks() > 1 or self.args.dataloader_drop_last or data is None or not has_length(data):
            return None
        num_full, rest = divmod(len(data), size)
        return [rest, size] if num_full and self.downsampler.short_batches.num_skipped([rest, size]) else None

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Predict as the Trainer does, without the index and group columns."""
        return super().prediction_step(model, self._without_columns(inputs), *arguments, **options)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate as the Trainer does, and restore the random states, so that training does not depend on it."""
        state = random_state()
        try:
            return super().evaluation_loop(*arguments, **options)
        finally:
            set_random_state(state)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log as the Trainer does, with the metrics of the selection beside the loss."""
        if "loss" in logs:
            logs |= self.downsampler.metrics()
        super().log(logs, *arguments, **options)

    def _check_processes(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) are not supported. Start one process per GPU "
                "with torchrun or accelerate launch and pass distributed='global', or set CUDA_VISIBLE_DEVICES to one "
                "GPU."
            )
        mode = self.downsampler.distributed
        check_mode(mode)
        if mode is not None and type(self).compute_loss is not SelectiveTrainerMixin.compute_loss:
            raise ValueError(
                f"distributed={mode!r} multiplies the loss, which {type(self).__name__}.compute_loss would undo. "
                "Define compute_loss in a Trainer of its own and mix it in: class MyTrainer(SelectiveTrainerMixin, "
                "TrainerWithLoss)."
            )

    def _check_example_weights(self) -> None:
        selector = self.downsampler.selector
        if not selector.weights_examples:
            return
        if type(self).compute_loss is not SelectiveTrainerMixin.compute_loss:
            raise ValueError(
                f"{selector.name!r} weights the loss of each example, which {type(self).__name__}.compute_loss would "
                "undo. Define compute_loss in a Trainer of its own, mix it in with class "
                "MyTrainer(SelectiveTrainerMixin, TrainerWithLoss), and pass `loss=`, a function of (logits, labels) "
                "with one value per example."
            )
        inherited: Any = super().compute_loss
        has_own = (
            inherited.__func__ is not Trainer.compute_loss
            or self.compute_loss_func is not None
            or self.args.label_smoothing_factor > 0
        )
        if has_own and self.downsampler.loss is None:
            raise ValueError(
                f"{selector.name!r} weights the loss of each example, and this Trainer has a loss of its own "
                "(compute_loss, compute_loss_func or label_smoothing_factor), which gives one value for all. Pass "
                "`loss=`, a function of (logits, labels) with one value per example, or choose another rule."
            )

    def _holdout_batches(self, dataset: Any) -> Iterable[Any]:
        """A loader of this rank's part of the holdout set that draws no global random numbers."""
        if isinstance(dataset, DataLoader):
            raise TypeError("`holdout_dataset` must be a data set; got a DataLoader. Pass its `dataset`.")
        if num_ranks() > 1 and hasattr(dataset, "__len__"):
            dataset = Subset(dataset, shard(len(dataset)))
        return DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="holdout"),
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in self._extra_columns if name not in columns]

    def _without_columns(self, inputs: Any) -> Any:
        return {name: value for name, value in inputs.items() if name not in self._extra_columns}

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        sampler: Any = super()._get_train_sampler(*arguments, **options)
        if getattr(sampler, "generator", self._order) is None:
            sampler.generator = self._order
        return sampler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:  # written last: one of an earlier run would make half a checkpoint look whole
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            (folder / _STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # before trainer_state.json, so a checkpoint that has that file has everything
        states = _gather_states(self.downsampler.state_dict())
        if self.args.should_save:
            Checkpoints(Path(output_dir, _FOLDER)).write(self.state.global_step, {"ranks": states})

    def _begin_training(self) -> None:
        self.downsampler.load_state_dict(self._start)
        is_counted = has_length(self.callback_handler.train_dataloader)
        self._epoch = int(self.state.epoch or 0) if is_counted else 0  # of the first epoch
        if self._is_resuming and not is_counted and not self.args.ignore_data_skip:
            self._check_pass()
        with self.accelerator.autocast():
            self.downsampler.prepare(self.model_wrapped)

    def _check_pass(self) -> None:
        number = int(self.downsampler.selector.epoch)
        if number > 0:
            raise ValueError(
                f"The checkpoint was saved in pass {number} (counted from 0) over a data set without a length, and the "
                "Trainer can resume exactly in pass 0 only, because it counts all batches as one pass. Pass "
                "ignore_data_skip=True to begin a new pass, use a data set that is long enough for max_steps, or "
                "SelectiveLoader in a loop of your own."
            )

    def _begin_epoch(self) -> None:
        self.downsampler.selector.set_epoch(self._epoch)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._order.manual_seed(mixed_seed(seed, self._epoch))
        self._epoch += 1
        self.downsampler.counts["largest_batch"] = 0
        if (sizes := self._short_sizes()) is not None:
            self.downsampler.short_batches.skips([sizes], self.downsampler.counts)

    def _end_step(self) -> None:
        with self.accelerator.autocast():
            self.downsampler.step(self.model_wrapped, is_last=float(self.state.epoch or 0).is_integer())


class SelectiveTrainer(SelectiveTrainerMixin, Trainer):
    """The Trainer of transformers, trained on the best part of every batch; see ``SelectiveTrainerMixin``."""


class _StepCallback(TrainerCallback):
    """Calls the trainer at the beginning of trainings and epochs, and at the end of steps."""

    def __init__(self, trainer: SelectiveTrainerMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin_training()

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin_epoch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer._end_step()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.trainer.downsampler.warn_of_stale_loss("was left")


def _extra_columns(spec: BatchSpec | None) -> tuple[str, ...]:
    """Names of the columns that the selection needs and the model does not."""
    if spec is None:
        return _COLUMNS
    names = tuple(name for name in (spec.index, spec.group) if isinstance(name, str) and name != spec.target)
    return (*names, INDEX_KEY)


def _gather_states(state: Any) -> list[Any]:
    """The ``state`` of every rank, on the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    parts = all_gather(torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8))
    return [torch.load(io.BytesIO(bytes(part.numpy())), map_location="cpu", weights_only=True) for part in parts]


def _read(folder: Path) -> Any:
    """The selection state in a checkpoint of the Trainer; rank 0's if the number of ranks has changed."""
    content = Checkpoints(folder / _FOLDER).read()
    if content is None:
        raise ValueError(
            f"{folder} has no selection state ({_FOLDER}/step_*.ckpt): another Trainer wrote it, or "
            "save_only_model=True. Load the model from it and start a new training, or resume with the Trainer that "
            "wrote it."
        )
    states = content["ranks"]
    return states[rank()] if len(states) == num_ranks() else states[0]


def _newest_whole(folder: Path) -> tuple[str, Any]:
    """The newest complete checkpoint, and the selection state in it."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    for _, path in sorted(((int(name[1]), path) for name, path in named if name), reverse=True):
        try:
            json.loads(read_regular_text(path / _STATE_NAME))
            return str(path), _read(path)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"Checkpoint {path} is incomplete ({error}). The one before it is used, if there is one.",
                RuntimeWarning,
                stacklevel=3,
            )
    raise ValueError(f"There is no complete checkpoint in {folder}. Train without resume_from_checkpoint.")
