"""Selection in the Trainer of transformers: for any sequence or image classifier, with its checkpoints."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from reducr._internal.distributed import all_gather, check_mode, num_ranks, rank, shard
from reducr._internal.rng import random_state, set_random_state
from reducr._internal.seeds import mixed_seed
from reducr.batch import BatchSpec
from reducr.batch.model_output import PerExampleLoss, logits_of
from reducr.downsampler import Downsampler, SelectionReport
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.scorer import IrreducibleLookup, per_example_losses
from reducr.selectors import Selector
from reducr.training.checkpoints import Checkpoints
from reducr.training.loader import check_has_end

_FOLDER = "reducr"
_STATE_NAME = "trainer_state.json"
_COLUMNS = ("index", "idx", "group", "groups")

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object  # the class after the mixin is whichever Trainer it is mixed into


class SelectiveTrainerMixin(_Base):
    """Trains on the best part of every batch: ``class MyTrainer(SelectiveTrainerMixin, AnyTrainer)``.

    ``per_device_train_batch_size`` is the number of candidates. They are scored as the model trains, in its precision,
    without their labels, and the best of them are what ``compute_loss`` gets. The loss of a step is the mean over the
    selected points of each batch, and the mean of these over its batches with ``gradient_accumulation_steps``; the
    selector is updated once for all of them, after the step of the optimiser.

    The index and group columns of the training data are kept, and taken away before the model is called. Logs have
    ``select/fraction``, ``select/num_non_finite`` and ``group_weight/g`` beside the loss.

    Checkpoints hold the state of the selection in the folder ``reducr``. ``train(resume_from_checkpoint=True)`` goes on
    from the newest one that is whole. On CPU that is exact, bit for bit, in the middle of an epoch too, unless the data
    set itself draws random numbers: the Trainer passes over the batches that were seen, without the draws they made.

    Args:
        arguments: of the Trainer.
        selector: the rule; its state is part of the checkpoints.
        irreducible: losses for the rules that need them: anything with ``lookup(batch)``.
        fraction: share of every batch to train on, in (0, 1]; rounded down, but at least one point.
        holdout_dataset: the clean holdout set, read like ``train_dataset``; gives the group-holdout loss before the
            first step and every ``refresh_steps`` after.
        refresh_steps: steps of the optimiser between two passes over it; None for the end of every epoch.
        loss: of (logits, labels), one value for each point (B,); None for the cross-entropy. A Trainer with a loss of
            its own needs it. Rules that weight points train on it.
        spec: where the parts of a batch are; None for ``labels``, ``idx`` or ``index``, ``group`` or ``groups``.
        scoring_mode: ``train``, ``eval`` or ``train_frozen_statistics``; see ``step.pick``.
        scoring_compile: makes scoring cheaper, as the next two; see ``Downsampler``.
        scoring_resolution: see ``Downsampler``.
        scoring_budget: see ``Downsampler``.
        distributed: on several ranks, ``global`` or ``local``; see docs/loops.md.
        options: of the Trainer. ``args.seed`` is also that of rules and samplers that draw.

    Raises:
        ValueError: for an option out of range, several ranks without ``distributed``, several GPUs in one process, or a
            stream without a length whose holdout loss would never be refreshed; before the first step if the holdout
            loss is needed and missing, or a batch cannot be read or scored.
        TypeError: for a selector that is none, or an irreducible without ``lookup``.
    """

    downsampler: Downsampler
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *arguments: Any,
        selector: Selector,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        holdout_dataset: Any = None,
        refresh_steps: int | None = None,
        loss: PerExampleLoss | None = None,
        spec: BatchSpec | None = None,
        scoring_mode: str = "train",
        scoring_compile: bool = False,
        scoring_resolution: float | None = None,
        scoring_budget: ScoringBudget | None = None,
        distributed: str | None = None,
        **options: Any,
    ) -> None:
        self._order = torch.Generator()
        self._beside = _names_beside(spec)
        self._loss_weight = 1.0
        self._point_weights: Tensor | None = None
        self._start: Any = None
        super().__init__(*arguments, **options)
        self.downsampler = Downsampler(
            self.model,  # type: ignore[arg-type]  # it has been made
            selector,
            irreducible,
            fraction=fraction,
            holdout=None if holdout_dataset is None else self._holdout_batches(holdout_dataset),
            refresh_steps=refresh_steps,
            loss=loss,
            spec=spec,
            scoring_mode=scoring_mode,
            scoring_compile=scoring_compile,
            scoring_resolution=scoring_resolution,
            scoring_budget=scoring_budget,
            distributed=distributed,
            weights_examples=getattr(selector, "weights_examples", False),
            seed=self.args.seed,
        )
        self._check_example_weights()
        if holdout_dataset is not None and refresh_steps is None and self.train_dataset is not None:
            check_has_end(self.train_dataset)  # type: ignore[arg-type]  # one that can be indexed has a length
        self._check_processes()
        self._untrained = copy.deepcopy(self.downsampler.state_dict()) if self.model_init is not None else None
        self.callback_handler.callbacks.insert(0, _AroundSteps(self))

    def report(self) -> SelectionReport:
        """What has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Train, as the Trainer does; see there.

        Raises:
            ValueError: if the checkpoint to go on from is damaged or has no state of a selection, or there is none.
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
        """Select from the candidates ``inputs``, and do the Trainer's step with what was selected."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            selected = self.downsampler.select(inputs)
        self._loss_weight = self.downsampler.loss_weight
        self._point_weights = self.downsampler.example_weights if self.downsampler.selector.weights_examples else None
        try:
            # without the number of items, which is that of the candidates
            loss: torch.Tensor = super().training_step(model, self._without_columns(selected))
        finally:
            self._loss_weight, self._point_weights = 1.0, None
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *arguments: Any, **options: Any
    ) -> Any:
        """The Trainer's loss, in training multiplied with the ``loss_weight`` of the selected points.

        For rules that weight points it is the mean of ``loss`` over them, weighted.
        """
        result: Any
        if self._point_weights is not None:
            result = super().compute_loss(model, inputs, True, *arguments, **options)
            selected: Any = self.downsampler.selected
            losses = per_example_losses(logits_of(result[1]), selected.target, self.downsampler.loss)
            weighted = (losses * self._point_weights).mean() * self._loss_weight
            return (weighted, *result[1:]) if return_outputs else weighted
        result = super().compute_loss(model, inputs, return_outputs, *arguments, **options)
        if self._loss_weight == 1:
            return result
        return (result[0] * self._loss_weight, *result[1:]) if return_outputs else result * self._loss_weight

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The Trainer's, without the index and group columns."""
        return super().prediction_step(model, self._without_columns(inputs), *arguments, **options)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The Trainer's; leaves the random states as found, so that the training does not depend on it."""
        state = random_state()
        try:
            return super().evaluation_loop(*arguments, **options)
        finally:
            set_random_state(state)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """The Trainer's, with what was selected beside the loss."""
        if "loss" in logs:
            report = self.report()
            weights = {f"group_weight/{group}": weight for group, weight in enumerate(report.group_weights)}
            logs |= {"select/fraction": report.fraction, "select/num_non_finite": report.num_non_finite, **weights}
        super().log(logs, *arguments, **options)

    def _check_processes(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process (DataParallel) are not supported: start one process for each "
                "with torchrun or accelerate launch and give distributed='global', or set CUDA_VISIBLE_DEVICES to one."
            )
        mode = self.downsampler.distributed
        check_mode(mode)
        if mode is not None and type(self).compute_loss is not SelectiveTrainerMixin.compute_loss:
            raise ValueError(
                f"distributed={mode!r} multiplies the loss, which {type(self).__name__}.compute_loss would undo. "
                "Let the class with compute_loss be a Trainer, and mix it in: class MyTrainer(SelectiveTrainerMixin, "
                "TrainerWithLoss)."
            )

    def _check_example_weights(self) -> None:
        selector = self.downsampler.selector
        if not selector.weights_examples:
            return
        if type(self).compute_loss is not SelectiveTrainerMixin.compute_loss:
            raise ValueError(
                f"{selector.name!r} weights the loss of each point, which {type(self).__name__}.compute_loss would "
                "undo. Let the class with compute_loss be a Trainer, mix it in, class MyTrainer(SelectiveTrainerMixin, "
                "TrainerWithLoss), and give loss=, of (logits, labels), with one value for each point."
            )
        inherited: Any = super().compute_loss
        has_own = (
            inherited.__func__ is not Trainer.compute_loss
            or self.compute_loss_func is not None
            or self.args.label_smoothing_factor > 0
        )
        if has_own and self.downsampler.loss is None:
            raise ValueError(
                f"{selector.name!r} weights the loss of each point, and this Trainer has a loss of its own "
                "(compute_loss, compute_loss_func or label_smoothing_factor), which gives one value for all. Give "
                "loss=, of (logits, labels), with one value for each point, or choose another rule."
            )

    def _holdout_batches(self, dataset: Any) -> Iterable[Any]:
        """A loader of this rank's share of the holdout set, that draws from no global generator."""
        collate = self._get_collator_with_removed_columns(self.data_collator, description="holdout")
        if num_ranks() > 1 and hasattr(dataset, "__len__"):
            dataset = Subset(dataset, shard(len(dataset)))
        return DataLoader(
            dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in self._beside if name not in columns]

    def _without_columns(self, inputs: Any) -> Any:
        return {name: value for name, value in inputs.items() if name not in self._beside}

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        sampler: Any = super()._get_train_sampler(*arguments, **options)
        if getattr(sampler, "generator", self._order) is None:
            sampler.generator = self._order
        return sampler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:  # it is written last; one of an earlier run would call half a checkpoint whole
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            (folder / _STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # after it on all ranks: then nothing is missing once trainer_state.json is there
        states = _of_all_ranks(self.downsampler.state_dict())
        if self.args.should_save:
            Checkpoints(Path(output_dir, _FOLDER)).write(self.state.global_step, {"ranks": states})

    def _begin_training(self) -> None:
        self.downsampler.model = self.model_wrapped
        self.downsampler.load_state_dict(self._start)
        is_counted = has_length(self.callback_handler.train_dataloader)
        self._epoch = int(self.state.epoch or 0) if is_counted else 0  # which the Trainer begins with
        if self._is_resuming and not is_counted and not self.args.ignore_data_skip:
            self._check_pass()
        with self.compute_loss_context_manager():
            self.downsampler.prepare()

    def _check_pass(self) -> None:
        number = int(self.downsampler.selector.epoch)
        if number > 0:
            raise ValueError(
                f"the checkpoint is of pass {number} (counted from 0) over a stream without a length, and the Trainer "
                "can go on exactly in pass 0 only: it counts all batches as of one pass. Give ignore_data_skip=True to "
                "begin a new pass, a stream that is long enough for max_steps, or use SelectiveLoader in a loop."
            )

    def _begin_epoch(self) -> None:
        self.downsampler.selector.set_epoch(self._epoch)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._order.manual_seed(mixed_seed(seed, self._epoch))
        self._epoch += 1

    def _end_step(self) -> None:
        with self.compute_loss_context_manager():
            self.downsampler.step(is_last=float(self.state.epoch or 0).is_integer())


class SelectiveTrainer(SelectiveTrainerMixin, Trainer):
    """The Trainer of transformers on the best part of every batch; see ``SelectiveTrainerMixin``."""


class _AroundSteps(TrainerCallback):
    """Tells the trainer where the training is."""

    def __init__(self, trainer: SelectiveTrainerMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin_training()

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin_epoch()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer._end_step()


def _names_beside(spec: BatchSpec | None) -> tuple[str, ...]:
    """The columns that selection needs and the model does not."""
    if spec is None:
        return _COLUMNS
    return tuple(name for name in (spec.index, spec.group) if isinstance(name, str) and name != spec.target)


def _of_all_ranks(state: Any) -> list[Any]:
    """Every rank's ``state``, on the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    parts = all_gather(torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8))
    return [torch.load(io.BytesIO(bytes(part.numpy())), map_location="cpu", weights_only=True) for part in parts]


def _read(folder: Path) -> Any:
    """The state of the selection in a checkpoint of the Trainer; this rank's, if there are as many as there were."""
    content = Checkpoints(folder / _FOLDER).read()
    if content is None:
        raise ValueError(
            f"{folder} has no state of a selection ({_FOLDER}/step_*.ckpt): it was written by another Trainer or with "
            "save_only_model=True. Load the model from it and begin anew, or go on with the Trainer that wrote it."
        )
    states = content["ranks"]
    return states[rank()] if len(states) == num_ranks() else states[0]


def _newest_whole(folder: Path) -> tuple[str, Any]:
    """The newest checkpoint that was written to its end, and the state of the selection in it."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    for _, path in sorted(((int(name[1]), path) for name, path in named if name), reverse=True):
        try:
            json.loads((path / _STATE_NAME).read_text(encoding="utf-8"))
            return str(path), _read(path)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"checkpoint {path} is not whole ({error}). The one before it is used, if there is one.",
                RuntimeWarning,
                stacklevel=3,
            )
    raise ValueError(f"there is no whole checkpoint in {folder} to go on from: train without resume_from_checkpoint.")
