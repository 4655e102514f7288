"""Selection in the training of anyone's LightningModule."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from reducr._internal.names import unknown_name
from reducr._internal.rng import random_state, set_random_state
from reducr.batch import BatchSpec
from reducr.batch.model_output import PerExampleLoss
from reducr.downsampler import Downsampler, SelectionReport
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.scorer import IrreducibleLookup
from reducr.selectors import Selector
from reducr.training.loader import check_has_end
from reducr.training.resumable import Resumable

ScoringPart = str | Callable[..., Any]


class SelectiveTraining(pl.Callback):
    """Trains a LightningModule on the best part of every batch: ``Trainer(callbacks=[SelectiveTraining(...)])``.

    The module stays as it is. Its training batches are the candidates: once one is on the device, the model scores it,
    without gradients, in the Trainer's precision and with the parameters of this very step, and ``training_step`` and
    all hooks get the selected points in the batch's own structure. The selector is updated once for each step of the
    optimiser. Batches of validation, test and prediction are not touched.

    Checkpoints of the Trainer hold the state of the selection, the place in the training data, whatever loader it comes
    from, and the random states of every rank. ``fit(ckpt_path=...)`` goes on from them: on CPU bit for bit, wherever
    ``Resumable`` is exact. Gradients that were accumulated but not stepped with are not in Lightning's checkpoints.

    Logged, at the steps that the Trainer logs: ``select/fraction``, ``select/num_non_finite`` and ``group_weight/g``.

    Args:
        selector: the rule.
        irreducible: losses for the rules that need them: anything with ``lookup(batch)``.
        fraction: share of every batch to train on, in (0, 1]; rounded down, but at least one point.
        model: what scores: None for the module itself, called with the input of a batch; the name of a part of it, such
            as ``net`` or ``net.head``; or a function of the module and the input.
        holdout: batches of the clean holdout set. They go through the hooks of a batch as in validation, and give the
            group-holdout loss before the first step and every ``refresh_steps`` after.
        refresh_steps: steps of the optimiser between two passes over it; None for the end of every epoch.
        loss: of (output, target), one value for each point (B,); None for the cross-entropy.
        spec: where the parts of a batch are; None for the usual places (see ``BatchSpec.of``).
        scoring_mode: ``train``, ``eval`` or ``train_frozen_statistics``; see ``step.pick``.
        scoring_compile: makes scoring cheaper, as the next two; see ``Downsampler``.
        scoring_resolution: see ``Downsampler``.
        scoring_budget: see ``Downsampler``.
        distributed: on several ranks, ``global`` or ``local``; see docs/loops.md. The loss that
            ``training_step`` returns is then multiplied with the ``loss_weight`` of the selected points.
        weights_examples: the module multiplies each loss with this callback's ``example_weights``; rules that
            weight points are refused without it.
        seed: of the draws of rules and samplers that draw.

    Raises:
        ValueError: for an option out of range; at the start of ``fit`` for manual optimisation, a strategy that shards
            the model, a ``model`` that is not there, several ranks without ``distributed``, a missing holdout loss, or
            a stream without a length whose holdout loss would never be refreshed; at the first batch for one that
            cannot be read, scored or selected from.
        TypeError: for a selector that is none, or an irreducible without ``lookup``.
    """

    def __init__(
        self,
        selector: Selector,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        *,
        model: ScoringPart | None = None,
        holdout: Iterable[Any] | None = None,
        refresh_steps: int | None = None,
        loss: PerExampleLoss | None = None,
        spec: BatchSpec | None = None,
        scoring_mode: str = "train",
        scoring_compile: bool = False,
        scoring_resolution: float | None = None,
        scoring_budget: ScoringBudget | None = None,
        distributed: str | None = None,
        weights_examples: bool = False,
        seed: int = 0,
    ) -> None:
        if not (model is None or isinstance(model, str) or callable(model)) or isinstance(model, nn.Module):
            raise TypeError(
                "model must be the name of a part of the LightningModule or a function (module, input) -> logits; got "
                f"{type(model).__name__}. Give its name in the module, or leave it out to score with the module itself."
            )
        self.model = model
        self.downsampler = Downsampler(
            nn.Identity(),  # there is no module yet
            selector,
            irreducible,
            fraction=fraction,
            holdout=None if holdout is None else _Holdout(holdout, self),
            refresh_steps=refresh_steps,
            loss=loss,
            spec=spec,
            scoring_mode=scoring_mode,
            scoring_compile=scoring_compile,
            scoring_resolution=scoring_resolution,
            scoring_budget=scoring_budget,
            distributed=distributed,
            weights_examples=weights_examples,
            seed=seed,
        )
        self.random_state: dict[str, Any] | None = None
        """Where a resumed training goes on; None once it has."""
        self._trainer: pl.Trainer | None = None
        self._global_step = 0
        self._is_selecting = False
        self._selected: Any = None
        self._places: list[dict[str, Any]] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def report(self) -> SelectionReport:
        """What has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    @property
    def example_weights(self) -> torch.Tensor:
        """(b,) what ``training_step`` must multiply the loss of each point with; ones for most rules."""
        return self.downsampler.example_weights

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer that this callback was last used by."""
        if self._trainer is None:
            raise RuntimeError("this callback has not met a Trainer yet: give it to one, Trainer(callbacks=[...]).")
        return self._trainer

    # ---- the Trainer's hooks, in the order of their calls

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take place between the Trainer and its strategy."""
        self._trainer = trainer
        self.random_state, self._places = None, []
        if stage == "fit":
            for name in ("process_dataloader", "batch_to_device", "training_step"):
                self._replace(trainer.strategy, name)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the module can be trained on selected points, and find what scores them."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises by hand (automatic_optimization=False), so that nobody knows "
                "when a step ends and the selector is to be updated. Leave the optimiser to Lightning, or train with "
                "SelectiveLoader in a loop of your own."
            )
        trained = trainer.strategy.model
        if trained is not pl_module and not isinstance(trained, DistributedDataParallel):
            raise ValueError(
                f"{type(trainer.strategy).__name__} splits the model over processes, but it scores in each as a whole. "
                "Choose Trainer(strategy='ddp') or one device."
            )
        self.downsampler.model = _Scorer(pl_module, self.model, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a holdout loss before the first step; go on with the random numbers of the training that is resumed."""
        downsampler = self.downsampler
        refreshes_at_ends = downsampler.holdout is not None and downsampler.refresh_steps is None
        if refreshes_at_ends and trainer.num_training_batches == math.inf:
            for loader in self._loaders():
                check_has_end(loader)
        self._global_step = trainer.global_step
        self._is_selecting = True
        self.downsampler.prepare()
        if self.random_state is not None:
            set_random_state(self.random_state)
            self.random_state = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        """See that nothing is trained on that was not selected."""
        if self._selected is None or batch is not self._selected:
            raise ValueError(
                f"{type(pl_module).__name__} was given a batch that nothing was selected from. A training_step that "
                "takes dataloader_iter reads batches by itself: let it take batch."
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Update the selector after a step of the optimiser, and log."""
        self._selected = None
        if trainer.global_step == self._global_step:
            return
        self._step()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of the Trainer
        if trainer.loggers and trainer.global_step % every == 0:
            report = self.report()
            weights = {f"group_weight/{group}": weight for group, weight in enumerate(report.group_weights)}
            facts = {"select/fraction": report.fraction, "select/num_non_finite": float(report.num_non_finite)}
            pl_module.log_dict(facts | weights, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget a selection whose batch the module has refused, with -1 from ``on_train_batch_start``."""
        self._forget_untrained()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the strategy as it was found."""
        self._put_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the strategy as it was found, and nothing half done."""
        self._put_back()
        self._forget_untrained()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Of every rank: the selection so far, the place in the training data, and the random states.

        All ranks must call it together, as they do in ``Trainer.save_checkpoint``.
        """
        if self._selected is not None and self.trainer.global_step > self._global_step:
            self._step()  # saved by a callback that comes before this one
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
        """Put back what ``state_dict`` gave; the state of rank 0 if there are not as many ranks as there were."""
        ranks = state["ranks"]
        own = ranks[rank()] if len(ranks) == num_ranks() else ranks[0]
        self.downsampler.load_state_dict(own["downsampler"])
        self._places, self.random_state = own["loaders"], own["random_state"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say so if the training cannot go on exactly from the checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            warnings.warn(
                "the checkpoint has no state of a selection: it was saved without this callback. The selector begins "
                "anew, and so does the pass over the training data.",
                RuntimeWarning,
                stacklevel=2,
            )
        elif state["ranks"][0]["downsampler"]["waiting"]:
            warnings.warn(
                "the checkpoint was saved between two steps of the optimiser, and Lightning does not keep the "
                "gradients accumulated until then: the training does not go on exactly. Save after a step, for "
                "instance with ModelCheckpoint(every_n_train_steps=...).",
                RuntimeWarning,
                stacklevel=2,
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take out what Lightning keeps of the loaders, which is empty: a training without this callback has others."""
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)

    # ---- in the place of the strategy's methods

    def process_dataloader(self, process: Callable[[object], object], loader: object) -> object:
        """A loader as the strategy wants it; that of the training data can be resumed, too."""
        loader = process(loader)
        if self.trainer.state.stage != RunningStage.TRAINING:
            return loader
        return ResumedLoader(loader, self, self._places.pop(0) if self._places else None)

    def batch_to_device(self, transfer: Callable[..., Any], batch: Any, *arguments: Any, **options: Any) -> Any:
        """A batch on the device; of one to train on, the selected points."""
        batch = transfer(batch, *arguments, **options)
        if not self._is_selecting or self.trainer.state.stage != RunningStage.TRAINING or batch is None:
            return batch
        scorer: Any = self.downsampler.model
        scorer.training = scorer.scored.training
        self.downsampler.selector.set_epoch(self.trainer.current_epoch)
        self._selected = self.downsampler.select(batch)
        return self._selected

    def training_step(self, step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the module returns, with the loss weighted as several ranks need it."""
        output, weight = step(*arguments, **options), self.downsampler.loss_weight
        if weight == 1 or output is None or not self._is_selecting:
            return output
        return {**output, "loss": output["loss"] * weight} if isinstance(output, Mapping) else output * weight

    def as_in_validation(self, batch: Any) -> Any:
        """A batch on the device, after all that the module's and data module's hooks do to one in validation."""
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
        self.downsampler.step(is_last=self.trainer.is_last_batch)

    def _forget_untrained(self) -> None:
        if self._selected is not None and self.trainer.global_step == self._global_step:
            self.downsampler.discard()
        self._selected = None

    def _loaders(self) -> list[ResumedLoader]:
        """Of the training data."""
        loaders = None if self._trainer is None else self._trainer.train_dataloader
        return [one for one in CombinedLoader(loaders).flattened if isinstance(one, ResumedLoader)]


class ResumedLoader:
    """A loader of training data, whose place the callback keeps: Lightning's own is not exact.

    Lightning reads loaders without a length one batch ahead, and does not put a place back where an epoch has ended.

    Args:
        loader: anything that the Trainer takes; its attributes are those of this one.
        callback: of the training.
        place: to go on from; None to begin.
    """

    batches: Resumable
    callback: SelectiveTraining
    before_last: dict[str, Any] | None
    place_to_begin_at: dict[str, Any] | None

    def __init__(self, loader: Any, callback: SelectiveTraining, place: dict[str, Any] | None) -> None:
        is_resumable = isinstance(loader, Resumable)
        vars(self).update(
            loader=loader,
            batches=loader if is_resumable else Resumable(loader),
            callback=callback,
            before_last=None,
            place_to_begin_at=place,
        )
        if place is not None:
            self.batches.load_state_dict(place["batches"])
        elif not is_resumable:
            self.batches.set_epoch(callback.trainer.current_epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self.loader, name, value)

    def __iter__(self) -> Iterator[Any]:
        place, self.place_to_begin_at = self.place_to_begin_at, None
        if place is not None and place["has_ended"] and (place["is_open"] or self.callback.trainer.max_steps != -1):
            return iter(())  # Lightning goes on in the epoch that had ended
        return self._iterated(place)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see ``place``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see ``place``."""

    def place(self) -> dict[str, Any]:
        """Where the batches begin that have not been trained on, and what Lightning will make of that."""
        fit_loop = self.callback.trainer.fit_loop
        batches: Any = fit_loop.epoch_loop.batch_progress
        epochs: Any = fit_loop.epoch_progress.current
        place = {
            "batches": self.batches.state_dict(),
            "random_state": None,
            "has_ended": batches.is_last_batch and batches.total.completed == batches.total.processed,
            "is_open": epochs.ready != epochs.processed,
        }
        if batches.is_last_batch:
            if place["batches"]["start"] is not None:
                place["batches"] = _next_epoch(place["batches"])
        elif self._is_read_ahead and self.before_last is not None:
            place |= self.before_last
        return place

    @property
    def _is_read_ahead(self) -> bool:
        return bool(self.callback.trainer.num_training_batches == math.inf)

    def _iterated(self, place: dict[str, Any] | None) -> Iterator[Any]:
        drawn_from = None if place is None else place["random_state"]
        batches = iter(self.batches)
        while True:
            resumed = self.callback.random_state
            if resumed is not None:  # read ahead, before the training begins
                set_random_state(drawn_from or resumed)
            if self._is_read_ahead:
                self.before_last = {"batches": self.batches.state_dict(), "random_state": random_state()}
            batch = next(batches, _END)
            if resumed is not None and drawn_from is None:
                self.callback.random_state = random_state()
            if batch is _END:
                return
            drawn_from = None
            yield batch


def _next_epoch(state: dict[str, Any]) -> dict[str, Any]:
    """Of a ``Resumable`` that has yielded all that Lightning asks it for."""
    kept = {name: state[name] for name in ("generators", "has_workers")}
    return {"epoch": state["epoch"] + 1, "position": 0, "start": None, **kept}


_END = object()


class _Holdout:
    """Batches of the holdout set, as the module sees those of a validation."""

    def __init__(self, batches: Iterable[Any], callback: SelectiveTraining) -> None:
        self.batches = batches
        self.callback = callback

    def __iter__(self) -> Iterator[Any]:
        return map(self.callback.as_in_validation, self.batches)


class _Scorer(nn.Module):
    """What scores, in the precision of the Trainer and without DistributedDataParallel."""

    def __init__(self, module: pl.LightningModule, part: ScoringPart | None, trainer: pl.Trainer) -> None:
        super().__init__()
        self.scored = module
        self.function = part if callable(part) else None
        self.precision = trainer.precision_plugin
        if isinstance(part, str):
            self.scored = _part_of(module, part)
        elif part is None and type(module).forward is pl.LightningModule.forward:
            names = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ValueError(
                f"{type(module).__name__} has no forward() to score with. Define it, or give model=, the name of the "
                f"part that gives logits (there are: {names}), or a function (module, input) -> logits."
            )

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Whatever the scoring part gives for an input."""
        with self.precision.forward_context():
            if self.function is not None:
                return self.function(self.scored, *arguments, **options)
            return self.scored(*arguments, **options)


def _part_of(module: pl.LightningModule, name: str) -> Any:
    try:
        part = operator.attrgetter(name)(module)
    except AttributeError:
        raise unknown_name("model", name, [name for name, _ in module.named_modules() if name]) from None
    if not isinstance(part, nn.Module):
        raise TypeError(
            f"model={name!r} must name a torch.nn.Module in {type(module).__name__}; it is a {type(part).__name__}. "
            "Give a function (module, input) -> logits instead."
        )
    return part
