"""Selection in the training of any LightningModule."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reducr._internal.distributed import num_ranks, rank
from reducr._internal.rng import random_state, set_random_state
from reducr.auxiliary import Auxiliary, ExtraBatches
from reducr.batch.report import SelectionReport
from reducr.downsampler import Downsampler
from reducr.lightning.resumed_loader import ResumedLoader
from reducr.lightning.scoring_part import PartName, ScoringPart
from reducr.scoring import Holdout, IrreducibleLookup, holdout_of, split_options
from reducr.selectors import Selector
from reducr.training.loader import check_example_weights, check_has_end, weights_or_ones


class SelectiveTraining(pl.Callback):
    """Train a LightningModule on the best part of every batch: ``Trainer(callbacks=[SelectiveTraining(...)])``.

    The module stays as it is. Its training batches are the candidates. Once a batch is on the device, the model scores
    it without gradients, in the Trainer's precision and with the parameters of the current step; ``training_step`` and
    all hooks get the selected examples in the batch's own structure. The selector is updated once per optimizer step.
    Validation, test and prediction batches are not touched.

    Checkpoints of the Trainer hold the state of the selection, the position in the training data, whatever its loader,
    and the random states of every rank. ``fit(ckpt_path=...)`` continues from them: on CPU bit for bit, wherever
    ``Resumable`` is exact. Gradients that were accumulated but not stepped with are not in Lightning's checkpoints.

    Logged, at the steps that the Trainer logs, with the number of gradient steps as the step: the keys of
    ``Downsampler.metrics``, such as ``select/fraction`` and ``group_weight/g``.

    Args:
        selector: the rule, or its name. Groups are then counted from ``holdout`` as it is, before the hooks, and the
            rule's options are given beside the others, such as ``step_size=1e-3``.
        irreducible: source of irreducible losses, for the rules that need them: anything with ``lookup(batch)``.
        fraction: fraction of every batch to train on, in (0, 1]; rounded down, but at least one example.
        model: what scores: None for the module itself, called with the input of a batch; the name of a part of it, such
            as ``net`` or ``net.head``; or a function of the module and the input.
        holdout: batches of the clean holdout set, or a ``Holdout``. They go through the hooks of a batch as in
            validation, and give the group-holdout loss before the first step and at every refresh.
        refresh_steps: optimizer steps between two evaluations of ``holdout``; ``"epoch"`` for the end of every epoch;
            None for a default that keeps the loss fresh at a bounded cost, see ``Holdout``.
        holdout_fraction: share of the examples of each step that are drawn from ``holdout`` instead of being selected,
            in [0, 1); they follow the selected ones.
        weights_examples: promise that the module multiplies the loss of each example with this callback's
            ``example_weights``. Rules that weight examples are refused without it.
        options: ``loss``, ``spec``, ``scoring``, ``auxiliary`` (its extra batches go through the hooks as in
            validation), ``distributed`` and ``seed``: see ``Downsampler``. On several ranks the loss that
            ``training_step`` returns is multiplied with the ``loss_weight`` of the selected examples.

    Raises:
        ValueError: for an option out of range; at the start of ``fit`` for manual optimization, a strategy that shards
            the model, a ``model`` that does not exist, several ranks without ``distributed``, a missing holdout loss,
            or a loader without a length whose holdout loss would never be refreshed; at the first batch if it cannot be
            read, scored or selected from.
        TypeError: for a selector or irreducible of another kind.
    """

    def __init__(
        self,
        selector: Selector | str,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        *,
        model: PartName | None = None,
        holdout: Holdout | Iterable[Any] | None = None,
        refresh_steps: int | str | None = None,
        holdout_fraction: float | None = None,
        weights_examples: bool = False,
        **options: Any,
    ) -> None:
        if not (model is None or isinstance(model, str) or callable(model)) or isinstance(model, nn.Module):
            raise TypeError(
                "`model` must be the name of a part of the LightningModule or a function (module, input) -> logits; "
                f"got {type(model).__name__}. Pass its name in the module, or leave it out to score with the module "
                "itself."
            )
        split_options("SelectiveTraining", Downsampler, selector, options)
        self.model = model
        holdout = holdout_of(holdout, refresh_steps, holdout_fraction)
        if holdout is not None:
            holdout = replace(holdout, batches=_HookedBatches(holdout.batches, self))
        auxiliary: Auxiliary | None = options.get("auxiliary")
        extra = None if auxiliary is None else auxiliary.new_extra_batches()
        if auxiliary is not None and extra is not None:
            extra = ExtraBatches(_HookedBatches(extra.stream.batches, self), transform=extra.transform)
            options["auxiliary"] = replace(auxiliary, extra_batches=extra)
        self.downsampler = Downsampler(selector, irreducible, fraction=fraction, holdout=holdout, **options)
        check_example_weights(self.downsampler.selector, weights_examples)
        self.random_state: dict[str, Any] | None = None
        """Random states that a resumed training begins with; None once it has."""
        self._trainer: pl.Trainer | None = None
        self._scorer: Any = None
        self._global_step = 0
        self._is_selecting = False
        self._selected: Any = None
        self._is_forgotten = False
        self._places: list[dict[str, Any]] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def report(self) -> SelectionReport:
        """Return what has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    @property
    def example_weights(self) -> torch.Tensor:
        """(b,) factor that ``training_step`` must multiply the loss of each example with; ones for most rules."""
        return weights_or_ones(self.downsampler)

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer that used this callback last."""
        if self._trainer is None:
            raise RuntimeError("No Trainer has used this callback yet. Pass it to one: Trainer(callbacks=[...]).")
        return self._trainer

    # ---- the Trainer's hooks, in the order of their calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wrap the methods of the strategy that batches and losses pass through."""
        self._trainer = trainer
        self.random_state, self._places = None, []
        if stage == "fit":
            for name in ("process_dataloader", "batch_to_device", "training_step"):
                self._replace(trainer.strategy, name)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the module can be trained on selected examples, and find what scores them."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} uses manual optimization (automatic_optimization=False), so the callback "
                "cannot know when a gradient step ends. Use automatic optimization, or SelectiveLoader in a loop of "
                "your own."
            )
        trained = trainer.strategy.model
        if trained is not pl_module and not isinstance(trained, DistributedDataParallel):
            raise ValueError(
                f"{type(trainer.strategy).__name__} shards the model over processes, and scoring needs the whole model "
                "in each. Use Trainer(strategy='ddp') or one device."
            )
        self._scorer = ScoringPart(pl_module, self.model, trainer)
        self.downsampler.check_model(self._scorer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the holdout set before the first step; restore the random states of a training that is resumed."""
        if self.downsampler.holdout.refreshes_at_epoch_ends and trainer.num_training_batches == math.inf:
            for loader in self._loaders():
                check_has_end(loader)
        self._global_step = trainer.global_step
        self._is_selecting = True
        with self._scorer.autocast():
            self.downsampler.prepare(self._scorer)
        if self.random_state is not None:
            set_random_state(self.random_state)
            self.random_state = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare batches with those of this epoch, to tell short ones."""
        self.downsampler.counts["largest_batch"] = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        """See that the module trains on selected examples only."""
        if self._selected is None or batch is not self._selected:
            raise ValueError(
                f"{type(pl_module).__name__} got a batch that nothing was selected from. A training_step that takes "
                "`dataloader_iter` reads batches by itself: let it take `batch`."
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Update the selector after an optimizer step, and log."""
        self._selected = None
        if trainer.global_step == self._global_step:
            return
        self._step()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of the Trainer
        if trainer.loggers and trainer.global_step % every == 0:
            metrics = self.downsampler.metrics() | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget a selection whose batch the module skipped, by returning -1 from ``on_train_batch_start``."""
        self._forget_untrained()
        for loader in self._loaders():
            loader.count_skipped()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the holdout loss has not been refreshed in the training."""
        self.downsampler.warn_of_stale_loss("was left")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the methods of the strategy."""
        self._put_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the methods of the strategy, and forget a selection that was not trained on."""
        self._put_back()
        self._forget_untrained()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return, for every rank, the selection so far, the place in the training data, and the random states.

        All ranks must call this together, as they do in ``Trainer.save_checkpoint``.
        """
        if self._selected is not None and self.trainer.global_step > self._global_step:
            self._step()  # a callback before this one saves the checkpoint
        own = {
            "downsampler": self.downsampler.state_dict(),
            "loaders": [loader.place() for loader in self._loaders()],
            "random_state": random_state(),
        }
        ranks = [own] * num_ranks()
        if num_ranks() > 1:
            dist.all_gather_object(ranks, move_data_to_device(own, torch.device("cpu")))
        return {"ranks": ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the state of rank 0 if the number of ranks has changed.

        The checkpoint of an evaluation, ``trainer.test(ckpt_path="best")``, leaves the selection and its report alone.
        """
        if self._trainer is not None and self._trainer.state.fn not in (None, TrainerFn.FITTING):
            return
        ranks = state["ranks"]
        own = ranks[rank()] if len(ranks) == num_ranks() else ranks[0]
        self.downsampler.load_state_dict(own["downsampler"])
        self._places, self.random_state = copy.deepcopy(own["loaders"]), copy.deepcopy(own["random_state"])
        if len(ranks) != num_ranks():
            for place in self._places:  # every rank reads another share of the data now
                place["batches"] |= {"length": None, "batch_size": None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Warn if the training cannot continue exactly from the checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            warnings.warn(
                "The checkpoint was saved without this callback, so it has no selection state. The selector and the "
                "pass over the training data start afresh.",
                RuntimeWarning,
                stacklevel=2,
            )
        elif state["ranks"][0]["downsampler"]["waiting"]:
            warnings.warn(
                "The checkpoint was saved between two optimizer steps, and Lightning does not save accumulated "
                "gradients: the training will not continue exactly. Save after a step, for instance with "
                "ModelCheckpoint(every_n_train_steps=...).",
                RuntimeWarning,
                stacklevel=2,
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove Lightning's state of the loaders: it is empty, and would not fit a training without this callback."""
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)

    # ---- in place of the strategy's methods

    def process_dataloader(self, process: Callable[[object], object], loader: object) -> object:
        """Return the loader as the strategy prepares it; training loaders become resumable."""
        loader = process(loader)
        if self.trainer.state.stage != RunningStage.TRAINING:
            return loader
        return ResumedLoader(loader, self, self._places.pop(0) if self._places else None)

    def batch_to_device(self, transfer: Callable[..., Any], batch: Any, *arguments: Any, **options: Any) -> Any:
        """Return the batch on the device; of a training batch, the selected examples."""
        batch = transfer(batch, *arguments, **options)
        if not self._is_selecting or self.trainer.state.stage != RunningStage.TRAINING or batch is None:
            return batch
        if self.downsampler.skips(batch):
            return None  # the Trainer goes on with the next batch
        self._scorer.training = self._scorer.scored.training
        self.downsampler.selector.set_epoch(self.trainer.current_epoch)
        with self._scorer.autocast():
            self._selected = self.downsampler.select(batch, self._scorer)
        self._is_forgotten = False
        return self._selected

    def training_step(self, step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return the module's output, with its loss multiplied by the loss weight of this rank.

        Lightning trains on nothing if the output is None, so the selection is forgotten.
        """
        output, weight = step(*arguments, **options), self.downsampler.loss_weight
        if output is None and self._is_selecting and not self._is_forgotten:
            self.downsampler.discard()
            self._is_forgotten = True
        if weight == 1 or output is None or not self._is_selecting:
            return output
        return {**output, "loss": output["loss"] * weight} if isinstance(output, Mapping) else output * weight

    def as_in_validation(self, batch: Any) -> Any:
        """Return a batch on the device, after the hooks of module and data module for validation batches."""
        trainer, state = self.trainer, self.trainer.state
        stage, state.stage = state.stage, RunningStage.VALIDATING
        try:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = trainer.lightning_module._on_before_batch_transfer(batch)
            return trainer.strategy.batch_to_device(batch)
        finally:
            state.stage = stage

    def _replace(self, strategy: Any, name: str) -> None:
        self._replaced.append((strategy, name, vars(strategy).get(name)))
        setattr(strategy, name, partial(getattr(self, name), getattr(strategy, name)))

    def _put_back(self) -> None:
        for strategy, name, own in self._replaced:
            if own is None:
                delattr(strategy, name)
            else:
                setattr(strategy, name, own)
        self._replaced = []
        self._is_selecting = False

    def _step(self) -> None:
        self._global_step = self.trainer.global_step
        with self._scorer.autocast():
            self.downsampler.step(self._scorer, is_last=self.trainer.is_last_batch)

    def _forget_untrained(self) -> None:
        if self._selected is not None and self.trainer.global_step == self._global_step and not self._is_forgotten:
            self.downsampler.discard()
        self._selected = None

    def _loaders(self) -> list[ResumedLoader]:
        """The loaders of the training data."""
        loaders = None if self._trainer is None else self._trainer.train_dataloader
        return [loader for loader in CombinedLoader(loaders).flattened if isinstance(loader, ResumedLoader)]


class _HookedBatches:
    """Holdout batches and extra batches after the hooks for validation batches."""

    def __init__(self, batches: Iterable[Any], callback: SelectiveTraining) -> None:
        self.batches = batches
        self.callback = callback

    def __iter__(self) -> Iterator[Any]:
        return map(self.hook, self.batches)

    def hook(self, batch: Any) -> Any:
        """Return a batch after the hooks."""
        return self.callback.as_in_validation(batch)
