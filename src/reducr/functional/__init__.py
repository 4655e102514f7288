"""The maths of selection as pure functions of tensors, without state."""

from typing import TYPE_CHECKING

from reducr._internal.deprecation import module_getattr
from reducr.functional.diversity import last_layer_gram, orthogonal_order
from reducr.functional.losses import (
    adjusted_irreducible_loss,
    adjusted_joint_irreducible_loss,
    per_example_cross_entropy,
    selection_dtype,
    zero_one_loss,
)
from reducr.functional.offsets import group_accuracy, logit_offsets
from reducr.functional.quotas import holdout_error, quota_scores
from reducr.functional.samplers import (
    exponential_rank_log_probabilities,
    gumbel_top_k,
    power_log_probabilities,
    rank_log_probabilities,
    top_k,
)
from reducr.functional.scores import (
    bayesian_score,
    conditional_entropy,
    excess_loss,
    gradient_norm,
    group_payoff,
    max_min_payoff,
    mutual_information,
    predictive_entropy,
    reducr_score,
)
from reducr.functional.sequences import TokenLoss, pixel_loss, sequence_loss, token_loss
from reducr.functional.weights import group_weights

__all__ = [
    "TokenLoss",
    "adjusted_irreducible_loss",
    "adjusted_joint_irreducible_loss",
    "bayesian_score",
    "conditional_entropy",
    "excess_loss",
    "exponential_rank_log_probabilities",
    "gradient_norm",
    "group_accuracy",
    "group_payoff",
    "group_weights",
    "gumbel_top_k",
    "holdout_error",
    "last_layer_gram",
    "logit_offsets",
    "max_min_payoff",
    "mutual_information",
    "orthogonal_order",
    "per_example_cross_entropy",
    "pixel_loss",
    "power_log_probabilities",
    "predictive_entropy",
    "quota_scores",
    "rank_log_probabilities",
    "reducr_score",
    "selection_dtype",
    "sequence_loss",
    "token_loss",
    "top_k",
    "zero_one_loss",
]

if not TYPE_CHECKING:  # a __getattr__ would hide misspelt names from type checkers
    __getattr__ = module_getattr(__name__, {"point_cross_entropy": "per_example_cross_entropy"}, removed_in="0.3.0")
