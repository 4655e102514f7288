"""The table of selectors, and the one way to make one by name."""

from __future__ import annotations

import inspect
from typing import Any

from reducr._internal.names import check_options, unknown_name
from reducr.selectors.base import Selector
from reducr.selectors.diversified import DivBS
from reducr.selectors.drop import Drop
from reducr.selectors.priority_sampling import PrioritySampling
from reducr.selectors.rcap import Rcap
from reducr.selectors.reducr import FixedWeights, Payoff, Reducr
from reducr.selectors.rs2 import Rs2
from reducr.selectors.samplers import PHASE_OPTIONS, SAMPLERS
from reducr.selectors.simple import ClassBalanced, IrreducibleLoss, RhoLoss, TrainLoss, Uniform
from reducr.selectors.uncertainty import (
    Bald,
    BayesianSelection,
    ConditionalEntropy,
    Entropy,
    GradientNorm,
    LossMinusConditionalEntropy,
    LossPlusConditionalEntropy,
)
from reducr.selectors.weighted import GroupDro, InfoBatch

SELECTORS: dict[str, type[Selector]] = {
    selector.name: selector
    for selector in (
        Uniform,
        TrainLoss,
        IrreducibleLoss,
        RhoLoss,
        Reducr,
        FixedWeights,
        Payoff,
        PrioritySampling,
        GradientNorm,
        Entropy,
        ConditionalEntropy,
        Bald,
        LossMinusConditionalEntropy,
        LossPlusConditionalEntropy,
        ClassBalanced,
        Drop,
        DivBS,
        Rs2,
        Rcap,
        GroupDro,
        InfoBatch,
        BayesianSelection,
    )
}


def make_selector(name: str, *, num_groups: int, **options: Any) -> Selector:
    """The selector of that name.

    Args:
        name: a key of ``SELECTORS``.
        num_groups: G >= 1.
        options: options of that selector; ``sampler`` and the options of that sampler.

    Returns:
        A new selector with fresh state.

    Raises:
        ValueError: for an unknown name or option (with the nearest ones), or a value outside its range.

    Example:
        >>> make_selector("reducr", num_groups=10, step_size=1e-4).group_weights[0]
        tensor(0.1000, dtype=torch.float64)
        >>> make_selector("rho_los", num_groups=10)
        Traceback (most recent call last):
        ValueError: unknown selector 'rho_los'. Did you mean 'rho_loss'...There are: bald, ...
    """
    if not isinstance(name, str) or name not in SELECTORS:
        raise unknown_name("selector", name, SELECTORS)
    build = SELECTORS[name]
    sampler = options.get("sampler")
    if sampler is None:
        sampler = build.default_sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    sampler_options = [*_keyword_names(SAMPLERS[sampler]), *PHASE_OPTIONS, "sampler"]
    check_options(f"selector {name!r} with sampler {sampler!r}", build, options, also=sampler_options)
    return build(num_groups=num_groups, **options)


def _keyword_names(build: type) -> list[str]:
    return list(inspect.signature(build).parameters)
