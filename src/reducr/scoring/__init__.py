"""The scoring pass: its options, precision, chunks and budget, and the holdout loss."""

from reducr.functional.outputs import per_example_losses
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.by_name import check_not_moved, names_of_rule, selector_of, split_options
from reducr.scoring.checks import bind_irreducible, check_apart, check_candidates, check_options, check_parts
from reducr.scoring.choose import choose
from reducr.scoring.draws import HoldoutDraws, check_holdout_fraction, num_examples_of, num_selected_beside
from reducr.scoring.faults import unread_example_weights, unread_loss_weight
from reducr.scoring.forward import ScoringForward, shrunk
from reducr.scoring.holdout import GroupHoldoutLoss, Holdout, holdout_of
from reducr.scoring.holdout_groups import HoldoutGroups, usable_parts
from reducr.scoring.modes import check_data_parallel, device_of, scoring_pass, without_wrappers
from reducr.scoring.options import SCORING_MODES, Scoring
from reducr.scoring.rows import candidate_groups, check_rows, selected_part
from reducr.scoring.scorer import (
    IrreducibleLookup,
    check_model_output,
    dropout_samples,
    holdout_losses,
    num_selected_of,
    score_candidates,
)
from reducr.scoring.short_batches import ShortBatches, known_sizes
from reducr.scoring.tracker import HoldoutTracker

__all__ = [
    "SCORING_MODES",
    "GroupHoldoutLoss",
    "Holdout",
    "HoldoutDraws",
    "HoldoutGroups",
    "HoldoutTracker",
    "IrreducibleLookup",
    "Scoring",
    "ScoringBudget",
    "ScoringForward",
    "ShortBatches",
    "bind_irreducible",
    "candidate_groups",
    "check_apart",
    "check_candidates",
    "check_data_parallel",
    "check_holdout_fraction",
    "check_model_output",
    "check_not_moved",
    "check_options",
    "check_parts",
    "check_rows",
    "choose",
    "device_of",
    "dropout_samples",
    "holdout_losses",
    "holdout_of",
    "known_sizes",
    "names_of_rule",
    "num_examples_of",
    "num_selected_beside",
    "num_selected_of",
    "per_example_losses",
    "score_candidates",
    "scoring_pass",
    "selected_part",
    "selector_of",
    "shrunk",
    "split_options",
    "unread_example_weights",
    "unread_loss_weight",
    "usable_parts",
    "without_wrappers",
]
