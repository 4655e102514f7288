"""select_distributed in one process, and merged selections; tests/distributed has several processes."""

import pytest
import torch

import reducr
from reducr.batch import Candidates, Selection
from reducr.selectors.distributed import select_distributed


def make_selector(**options):
    selector = reducr.make_selector("reducr", num_groups=2, step_size=0.1, **options)
    selector.set_group_holdout_loss(torch.tensor([0.25, 1.0]))
    return selector


def make_candidates(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    return Candidates(
        model_loss=torch.rand(size, generator=generator) * 4,
        group_irreducible_loss=torch.rand(size, 2, generator=generator),
    )


@pytest.mark.parametrize("mode", [None, "global", "local"])
@pytest.mark.parametrize("num_selected", [3, lambda num_candidates: num_candidates // 2])
def test_one_process_selects_like_select(mode, num_selected):
    selector, candidates = make_selector(sampler="softmax"), make_candidates(0)
    expected = selector.select(candidates, num_selected=3, generator=torch.Generator().manual_seed(1))
    selection = select_distributed(
        selector, candidates, num_selected=num_selected, generator=torch.Generator().manual_seed(1), mode=mode
    )
    assert selection.positions.tolist() == expected.positions.tolist()
    assert torch.equal(selection.scores, expected.scores)
    assert torch.equal(selection.payoff, expected.payoff)
    assert selection.loss_weight == 1
    assert not selection.is_dummy


def test_one_process_raises_like_select():
    with pytest.raises(ValueError, match="between 1 and the number of candidates, 6; got 7"):
        select_distributed(make_selector(), make_candidates(0), num_selected=7, mode="global")


@pytest.mark.parametrize(
    ("options", "num_subtractions"),
    [({}, 6), ({"holdout_weighting": "per_step"}, 1), ({"holdout_weighting": "per_step", "use_holdout": False}, 0)],
)
def test_merged_selections_count_as_one_step(options, num_subtractions):
    selector = make_selector(**options)
    parts = [make_candidates(seed, size=4 + seed) for seed in range(3)]
    selections = [selector.select(part, num_selected=2) for part in parts]
    merged = selector.merged(selections)
    chosen = [part.take(selection.positions) for part, selection in zip(parts, selections, strict=True)]
    excess = torch.cat([selector.excess(candidates) for candidates in chosen]).double().sum(dim=0)
    expected = excess - num_subtractions * torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert merged.payoff.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert torch.equal(merged.scores, torch.cat([selection.scores for selection in selections]))
    chosen_scores = torch.cat([selection.scores[selection.positions] for selection in selections])
    assert torch.equal(merged.scores[merged.positions], chosen_scores)
    assert merged.loss_weight == 1
    selector.update(merged)
    assert int(selector.step) == 1
    assert selector.cumulative_payoff.tolist() == merged.payoff.tolist()


def test_merging_adds_up_non_finite_losses_and_averages_loss_weights():
    selections = [
        Selection(torch.tensor([0]), torch.ones(2), torch.zeros(2), n, weight) for n, weight in ((1, 2.0), (3, 0.0))
    ]
    merged = make_selector().merged(selections)
    assert merged.num_non_finite == 4
    assert merged.loss_weight == 1
    assert merged.positions.tolist() == [0, 2]
    assert selections[1].is_dummy
    assert not merged.is_dummy


def test_merging_one_selection_returns_it_and_none_is_an_error():
    selector = make_selector()
    selection = selector.select(make_candidates(0), num_selected=2)
    assert selector.merged([selection]) is selection
    with pytest.raises(ValueError, match=r"merged\(\) needs at least one selection; got none"):
        selector.merged([])


def test_equal_examples_have_equal_scores_at_every_position():
    """A matrix product would round some of them differently."""
    generator = torch.Generator().manual_seed(2)
    row = torch.rand(17, generator=generator)
    logits = torch.randn(10, 1, 7, generator=generator)
    weighted, bald = (
        reducr.make_selector(name, num_groups=groups, **options)
        for name, groups, options in (("reducr", 17, {"use_holdout": False}), ("bald", 7, {}))
    )
    scores, uncertainties = set(), set()
    for size in (1, 2, 5, 33):
        candidates = Candidates(
            model_loss=torch.full((size,), 1.5),
            group_irreducible_loss=row.repeat(size, 1),
            logits=logits.repeat(1, size, 1),
        )
        scores |= set(weighted.select(candidates, num_selected=1).scores.tolist())
        uncertainties |= set(bald.select(candidates, num_selected=1).scores.tolist())
    assert len(scores) == 1
    assert len(uncertainties) == 1
