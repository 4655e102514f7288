"""The scoring pass: its options, precision, chunks and budget, and the holdout loss."""

from reducr.functional.outputs import per_example_losses
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.checks import bind_irreducible, check_apart, check_candidates, check_options, check_parts
from reducr.scoring.forward import ScoringForward, shrunk
from reducr.scoring.holdout import GroupHoldoutLoss, Holdout, holdout_of
from reducr.scoring.modes import check_data_parallel, device_of, scoring_pass, without_wrappers
from reducr.scoring.options import SCORING_MODES, Scoring
from reducr.scoring.rows import candidate_groups, check_rows, selected_part
from reducr.scoring.scorer import (
    IrreducibleLookup,
    check_model_output,
    dropout_samples,
    holdout_losses,
    known_fields,
    model_fields,
    num_selected_of,
    score_candidates,
    select_within_budget,
)
from reducr.scoring.tracker import HoldoutTracker

__all__ = [
    "SCORING_MODES",
    "GroupHoldoutLoss",
    "Holdout",
    "HoldoutTracker",
    "IrreducibleLookup",
    "Scoring",
    "ScoringBudget",
    "ScoringForward",
    "bind_irreducible",
    "candidate_groups",
    "check_apart",
    "check_candidates",
    "check_data_parallel",
    "check_model_output",
    "check_options",
    "check_parts",
    "check_rows",
    "device_of",
    "dropout_samples",
    "holdout_losses",
    "holdout_of",
    "known_fields",
    "model_fields",
    "num_selected_of",
    "per_example_losses",
    "score_candidates",
    "scoring_pass",
    "select_within_budget",
    "selected_part",
    "shrunk",
    "without_wrappers",
]
