"""Notice a reference model that is no better than chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from reducr._internal.distributed import is_main_rank

_NUM_EXAMPLES = 512
_NUM_PAIRS = 128
_SMALL_GAIN, _LARGE_LOSS, _LARGE_ENTROPY = 0.1, 0.95, 0.8  # of log C; see ChanceWatch


class ChanceWatch:
    """Warn once if the losses of a reference model hardly depend on the targets, as those of an untrained one.

    Over the first 512 candidates the loss of each example is compared with its loss if it had the target of another
    example of the batch, wherever the two targets differ::

        gain = mean( loss(output_i, target_j) - loss(output_i, target_i) )

    The gain of a constant prediction is zero, whatever the frequencies of the targets. Wrong labels make the gain
    smaller in proportion to their share. The mean loss alone would not do: with noisy labels that of a good model
    exceeds log C. The warning comes if the gain is not above two standard errors, or, for C classes,

    - not above 0.1 log C: trained models have more than twice that with 80 % of the labels wrong; or
    - the mean loss is at least 0.95 log C and the mean entropy of the predictions at least 0.8 log C, which catches
      initial parameters that happen to fit the classes a little.

    Costs a second evaluation of the loss for these candidates, no forward pass, and one wait for the device.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._num_examples = 0
        self._sums: Tensor | None = None

    def add(
        self, losses: Tensor, target: Tensor, loss_at: Callable[[Tensor], Tensor], *, logits: Tensor | None
    ) -> None:
        """Look at one batch.

        Args:
            losses: (B,) of the examples.
            target: (B, ...).
            loss_at: gives the losses (B,) of the same outputs for other targets.
            logits: (B, C) of the targets if the loss is the cross-entropy; None for another.
        """
        if self.is_done or len(losses) < 2:
            return
        other = target.roll(1, 0)
        is_pair = (other != target).reshape(len(target), -1).any(dim=1)
        own, gains = losses.float(), loss_at(other).float() - losses.float()
        is_pair &= own.isfinite() & gains.isfinite()
        entropy = torch.zeros_like(own)
        if logits is not None:
            log_probabilities = logits.float().log_softmax(dim=1)
            entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1).nan_to_num()
        values = [torch.ones_like(own), gains, gains.square(), own, entropy]
        sums = torch.stack([value.where(is_pair, 0.0).sum() for value in values])
        self._sums = sums if self._sums is None else self._sums + sums
        self._num_examples += len(losses)
        if self._num_examples >= _NUM_EXAMPLES:
            self._judge(None if logits is None else logits.shape[1])

    def _judge(self, num_classes: int | None) -> None:
        num_pairs, *sums = self._sums.tolist()  # type: ignore[union-attr]  # there is a batch
        self._num_examples = 0
        if num_pairs < _NUM_PAIRS:
            return
        self.is_done, self._sums = True, None
        gain, squared_gain, own, entropy = (total / num_pairs for total in sums)
        error = math.sqrt(max(squared_gain - gain**2, 0.0) / num_pairs)
        is_near_chance, constant = gain <= 2 * error, ""
        if num_classes is not None and num_classes > 1:
            chance = math.log(num_classes)
            is_vague = own >= _LARGE_LOSS * chance and entropy >= _LARGE_ENTROPY * chance
            is_near_chance |= gain <= _SMALL_GAIN * chance or is_vague
            constant = f" (log C is {chance:.3f})"
        if is_near_chance and is_main_rank():
            warnings.warn(
                f"The reference model is near chance on the candidates: its mean loss is {own:.3f}{constant}, and "
                f"{own + gain:.3f} if each example has the target of another. Selection by it is hardly better than at "
                "random. Train it on the clean holdout set first: "
                "reference = reducr.fit_reference(copy.deepcopy(model), clean).",
                RuntimeWarning,
                stacklevel=2,
            )
