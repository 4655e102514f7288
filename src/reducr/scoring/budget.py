"""A cheaper scoring pass: fewer points, in another precision, by a compiled model, of smaller images."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducr._internal.buffers import MAX_EXAMPLES, FixedDtypeBuffers
from reducr._internal.checks import check_count, check_flag, is_finite_number
from reducr.batch import Candidates
from reducr.functional import top_k
from reducr.selectors import Selector

_LARGE_LOSS = 100.0  # nats, so many that irreducible losses alone decide


class ScoringBudget(FixedDtypeBuffers):
    """Scores only the candidates that could be selected by what is remembered of them, and a few to keep that fresh.

    Of every point, by its index, the last model loss is remembered, and the step that it was taken at. Of B candidates
    ``fraction`` B are scored by the model. Most are the best by the selector's own score, with the remembered losses in
    the place of the model's, and irreducible losses and group weights as they are now; a point that was never scored
    counts with the highest loss of those scored last. The rest are those of the others that were scored longest ago, of
    equal ones some at random, so that no point is forgotten. The selector then chooses, by their new losses, among
    those that were scored.

    The memory takes 8 bytes a point, up to the largest index seen or a little beyond. Irreducible losses are looked up
    for all candidates: from a table that costs next to nothing, from live models a forward pass of theirs.

    State:
        loss: (N,) float32 nats, the last model loss of each point.
        scored_step: (N,) int32, ``step`` when it was taken; -1 where it never was.
        step: () int32, batches so far.
        high_loss: () float32 nats, what a point counts with that was never scored.

    Args:
        fraction: share of the candidates that is scored, in (0, 1]; 1 selects as without a budget.
        oldest_fraction: share of the scored points that is chosen by age alone, in [0, 1].
        num_examples: N where it is known, to make room for once. Without it, the largest index of a batch that is on a
            GPU has to be waited for.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> from reducr import Candidates, make_selector
        >>> budget, selector = ScoringBudget(0.5, oldest_fraction=0.0), make_selector("train_loss", num_groups=2)
        >>> budget.reserve(torch.arange(4))
        >>> budget.remember(torch.arange(4), torch.tensor([0.1, 2.0, 0.3, 1.0]))
        >>> candidates = Candidates(groups=torch.tensor([0, 1, 0, 1]))
        >>> budget.positions(torch.tensor([3, 2, 1, 0]), candidates, selector, num_selected=1)
        tensor([0, 2])
    """

    growing = frozenset({"loss", "scored_step"})

    loss: Tensor
    scored_step: Tensor
    step: Tensor
    high_loss: Tensor

    def __init__(self, fraction: float, *, oldest_fraction: float = 0.1, num_examples: int | None = None) -> None:
        super().__init__()
        if not (is_finite_number(fraction) and 0 < fraction <= 1):
            raise ValueError(
                f"the fraction of a scoring budget must be in (0, 1], the share of the candidates to score; got "
                f"{fraction}."
            )
        if not (is_finite_number(oldest_fraction) and 0 <= oldest_fraction <= 1):
            raise ValueError(
                "oldest_fraction must be in [0, 1], the share of the scored points that is chosen by age alone; got "
                f"{oldest_fraction}."
            )
        if num_examples is not None:
            check_count("num_examples", num_examples)
        self.fraction = float(fraction)
        self.oldest_fraction = float(oldest_fraction)
        self.num_examples = num_examples
        self.register_buffer("loss", torch.zeros(num_examples or 0))
        self.register_buffer("scored_step", torch.full((num_examples or 0,), -1, dtype=torch.int32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int32))
        self.register_buffer("high_loss", torch.tensor(_LARGE_LOSS))

    def reserve(self, index: Tensor | None) -> None:
        """Make room for the points ``index`` (B,); best called where they are before they go to a GPU.

        Raises:
            ValueError: if there is no index, or indices are not one whole number in range for each point.
        """
        if index is None:
            raise ValueError(
                "a scoring budget remembers the loss of every point by its index, and these batches have none. Let the "
                "data set yield (index, input, target), say where the index is with spec=BatchSpec(index=...), or "
                "leave the budget out."
            )
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise ValueError(
                f"an index must be one integer for each point, (B,); got {index.dtype} {tuple(index.shape)}."
            )
        is_trusted = self.num_examples is not None and index.device.type != "cpu"
        if is_trusted or not len(index):
            return
        smallest, largest = (int(bound) for bound in index.aminmax())
        most = self.num_examples or MAX_EXAMPLES
        if smallest < 0 or largest >= most:
            raise ValueError(
                f"a scoring budget remembers points by indices in 0..{most - 1}; got "
                f"{smallest if smallest < 0 else largest}. Number the points of the data set from 0."
            )
        if largest >= len(self.loss):
            more = max(largest + 1, 2 * len(self.loss)) - len(self.loss)
            self.loss = torch.cat([self.loss, self.loss.new_zeros(more)])
            self.scored_step = torch.cat([self.scored_step, self.scored_step.new_full((more,), -1)])

    def positions(
        self,
        index: Tensor,
        candidates: Candidates,
        selector: Selector,
        *,
        num_selected: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Positions of the candidates to score, in ascending order; changes nothing.

        Args:
            index: (B,) of the candidates, for which there is room.
            candidates: all that the selector needs of them but the model loss.
            selector: the rule, with the group weights as they are now.
            num_selected: b in [1, B], how many of them will be selected.
            generator: source of the random part; None uses torch's global one.

        Returns:
            (K,) int64 with ``K = max(b, floor(fraction * B))``.
        """
        index = index.long()
        num_scored = max(num_selected, math.floor(self.fraction * len(index) + 1e-9))
        if num_scored >= len(index):
            return torch.arange(len(index), device=index.device)
        scored_step = self.scored_step.index_select(0, index)
        loss = torch.where(scored_step < 0, self.high_loss, self.loss.index_select(0, index))
        scores = selector.valid_scores(replace(candidates, model_loss=loss), generator=generator)
        best = top_k(scores, num_scored - round(self.oldest_fraction * num_scored))
        drawn_on = index.device if generator is None else generator.device
        chance = torch.rand(len(index), dtype=torch.float64, generator=generator, device=drawn_on).to(index.device)
        age = self.step - scored_step + chance
        return top_k(age.index_fill(0, best, torch.inf), num_scored).sort().values

    def remember(self, index: Tensor, model_loss: Tensor) -> None:
        """Keep the losses (K,) that the model has just had on the points ``index`` (K,); call it once a batch."""
        index = index.long()
        loss = model_loss.float()
        self.loss.index_copy_(0, index, loss)
        self.scored_step.index_copy_(0, index, self.step.expand(index.shape))
        self.step.add_(1)
        self.high_loss.copy_(loss.max().nan_to_num(nan=_LARGE_LOSS, posinf=_LARGE_LOSS))

    def _fault(self, name: str, value: Any, buffer: Tensor) -> str | None:
        is_memory = name in self.growing and isinstance(value, Tensor) and value.ndim == 1
        if not is_memory or value.dtype != buffer.dtype:
            return super()._fault(name, value, buffer)
        return (
            None if self.num_examples in (None, len(value)) else f"is of {len(value)} points, not {self.num_examples}"
        )


def check_budget(budget: Any, selector: Selector, *, fraction: float, distributed: str | None) -> None:
    """See that ``budget`` is none, or can serve this rule, this fraction and this number of ranks.

    Args:
        budget: a ``ScoringBudget`` or None.
        selector: must be pointwise and read the model loss, but no logits.
        fraction: of the candidates to be selected; at most that of the budget.
        distributed: must be None, as every rank would remember losses of its own.

    Raises:
        TypeError: for a budget that is none.
        ValueError: for one that does not fit; says why.
    """
    if budget is None:
        return
    if not isinstance(budget, ScoringBudget):
        raise TypeError(
            f"scoring_budget must be a reducr.ScoringBudget; got {type(budget).__name__}. To score two fifths "
            "of the candidates give ScoringBudget(0.4)."
        )
    if "model_loss" not in selector.needs or "logits" in selector.needs or not selector.is_pointwise:
        reads = ", ".join(sorted(selector.needs)) or "nothing"
        raise ValueError(
            f"a scoring budget ranks candidates by remembered model losses, so it serves rules that score each point "
            f"by its model loss, such as 'reducr' and 'rho_loss'; {selector.name!r} reads {reads}. Choose such a rule, "
            "or leave the budget out."
        )
    if fraction > budget.fraction:
        raise ValueError(
            f"a scoring budget of {budget.fraction:g} of the candidates cannot select {fraction:g} of them: only "
            "scored points are selected. Give it a larger fraction, or select less."
        )
    if distributed is not None:
        raise ValueError(
            f"a scoring budget does not work with distributed={distributed!r}: each rank would remember the losses of "
            "its own points only, and score another number of them. Leave one of the two out."
        )


def check_compiled(selector: Selector, is_compiled: bool) -> None:
    """Raise ValueError if ``selector`` reads what a compiled model does not show: the input of its last layer."""
    if is_compiled and "features" in selector.needs:
        raise ValueError(
            f"{selector.name!r} reads what the last layer of the model is given, which a compiled model does not show: "
            "leave scoring as it is, without compiling, or choose another rule."
        )


class ScoringForward:
    """Calls a model the way it scores: compiled, in another precision, with images at a lower resolution.

    Its parameters, buffers and modes are those of the model.

    Args:
        model: that scores.
        scoring_mode: that it is run in; see ``step.pick``.
        autocast: bfloat16 or float16; None for the autocast mode at hand.
        is_compiled: by ``torch.compile``, at the first call.
        resolution: share of an image's height and width that is left, in (0, 1); None for all of it.

    Raises:
        ValueError: for another precision, a resolution out of range or at which batch norms would go astray, or a
            missing compiler; when called, for inputs without images, or a model that does not take smaller ones.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scoring_mode: str = "train",
        autocast: torch.dtype | None = None,
        is_compiled: bool = False,
        resolution: float | None = None,
    ) -> None:
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None; got {autocast}.")
        check_flag("scoring_compile", is_compiled)
        if resolution is not None:
            _check_resolution(model, scoring_mode, resolution)
        if is_compiled:
            _check_compiler()
        self.model = model
        self.autocast = autocast
        self.resolution = resolution
        self._called: Callable[..., Any] = torch.compile(model) if is_compiled else model

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Whatever the model gives."""
        if self.resolution is None:
            return self._in_precision(arguments, named)
        given = [*arguments, *named.values()]
        images = [value for value in given if _is_images(value)]
        if not images:
            found = ", ".join(str(tuple(one.shape)) if isinstance(one, Tensor) else type(one).__name__ for one in given)
            raise ValueError(
                f"a scoring resolution of {self.resolution:g} needs images (B, K, H, W) as inputs; got {found}. Leave "
                "it out."
            )
        small = [shrunk(value, self.resolution) if _is_images(value) else value for value in given]
        try:
            return self._in_precision(small[: len(arguments)], dict(zip(named, small[len(arguments) :], strict=True)))
        except RuntimeError as error:
            (height, width), (new_height, new_width) = (
                images[0].shape[2:],
                shrunk(images[0][:1], self.resolution).shape[2:],
            )
            raise ValueError(
                f"the model cannot score at a resolution of {self.resolution:g}, images of {new_height} x {new_width} "
                f"in the place of {height} x {width}: {error}. It must take images of any size, as one does that ends "
                "in a global average, such as reducr.models.ResNet. Choose one, or leave the scoring resolution out."
            ) from error

    def _in_precision(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if self.autocast is None:
            return self._called(*arguments, **named)
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        # weights that were cast without gradients must not be what training sees afterwards
        with torch.autocast(device.type, dtype=self.autocast, cache_enabled=False):
            return self._called(*arguments, **named)


def shrunk(images: Tensor, resolution: float) -> Tensor:
    """Images (B, K, H, W) of ``resolution`` times their height and width, each pixel the mean of those it covers.

    Pixels that are integers stay so, rounded.

    Example:
        >>> shrunk(torch.tensor([[[[0, 4], [8, 8]]]], dtype=torch.uint8), 0.5)
        tensor([[[[5]]]], dtype=torch.uint8)
    """
    height, width = (max(1, round(resolution * side)) for side in images.shape[2:])
    if images.is_floating_point():
        return F.adaptive_avg_pool2d(images, (height, width))
    return F.adaptive_avg_pool2d(images.float(), (height, width)).round().to(images.dtype)


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _check_resolution(model: nn.Module, scoring_mode: str, resolution: Any) -> None:
    if not (is_finite_number(resolution) and 0 < resolution < 1):
        raise ValueError(
            "a scoring resolution must be in (0, 1), the share of an image's height and width that is left for "
            f"scoring; got {resolution}. For whole images leave it out."
        )
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if norms and scoring_mode == "train":
        raise ValueError(
            f"scoring_mode='train' would move the running statistics of {norms[0]!r} by images of a resolution of "
            f"{resolution:g}, on which the model is neither trained nor tested: choose "
            "scoring_mode='train_frozen_statistics' or 'eval'."
        )


def _check_compiler() -> None:
    names = (os.environ.get("CXX"), "g++", "clang++")
    if not any(shutil.which(name) for name in names if name):
        raise ValueError(
            "compiling the scoring pass needs a C++ compiler, and there is none called $CXX, g++ or clang++ here. "
            "Install g++, or leave scoring as it is."
        )
