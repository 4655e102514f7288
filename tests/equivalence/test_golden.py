"""Every published selection rule, against recorded inputs and outputs of the published implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import reducr
from reducr.functional import per_example_cross_entropy

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_same_selected_points_weights_and_cumulative_payoff(case):
    spec = CASES[case]
    with np.load(GOLDEN / f"{case}.npz") as file:
        recorded = {name: torch.from_numpy(file[name]) for name in file.files}
    selector = reducr.make_selector(spec["selector"], num_groups=spec["num_groups"], **spec["options"])

    for step in range(spec["steps"]):
        selector.set_group_holdout_loss(recorded["class_holdout_loss"][step])
        logits, targets = recorded["logits"][step], recorded["target"][step]
        candidates = reducr.Candidates(
            model_loss=per_example_cross_entropy(logits, targets),
            irreducible_loss=recorded["class_irreducible_loss"][step][:, 0],
            group_irreducible_loss=recorded["class_irreducible_loss"][step],
            logits=logits,
            targets=targets,
            groups=targets,
        )
        if "weights_used" in recorded:
            torch.testing.assert_close(selector.group_weights, recorded["weights_used"][step], rtol=0, atol=1e-7)
        selection = selector.select(candidates, num_selected=spec["num_selected"])
        assert set(selection.positions.tolist()) == set(recorded["selected"][step].tolist()), f"step {step}"
        selector.update(selection)
        if "cumulative_objective" in recorded:
            torch.testing.assert_close(
                selector.cumulative_payoff, recorded["cumulative_objective"][step], rtol=0, atol=1e-9
            )


def test_every_recorded_case_is_run():
    assert sorted(CASES) == sorted(path.stem for path in GOLDEN.glob("*.npz"))
    assert len(CASES) == 11
