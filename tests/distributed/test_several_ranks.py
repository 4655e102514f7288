"""What two and four processes find together is what one finds; see ``tests/ranks.py`` for what they run."""

import re
import signal
from functools import cache

import numpy as np
import pytest
import torch

import ranks
from ranks import NUM_GROUPS, NUM_SELECTED, SIZES, cases_of
from reducr.functional import top_k


@pytest.fixture(scope="module")
def run_everything(tmp_path_factory):
    """Runs the program on so many ranks, once; the results of each."""
    return cache(lambda count: ranks.run_ranks("everything", count, tmp_path_factory.mktemp("ranks")))


@pytest.fixture(params=[2, 4])
def of_ranks(request, run_everything):
    """The results of each rank."""
    return run_everything(request.param)


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def everyone_said(of_ranks, part, fault):
    said = [found[part][fault] for found in of_ranks]
    assert len(set(said)) == 1
    return said[0]


@pytest.mark.parametrize(
    ("count", "case"),
    [(count, case) for count in (2, 4) for case in cases_of(count)],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_the_best_of_all_ranks_are_those_of_one_process(run_everything, count, case):
    sizes, number = SIZES[count], cases_of(count).index(case)
    of_ranks = run_everything(count)
    for step, expected in enumerate(ranks.rounds(case, mode="global", num_selected=NUM_SELECTED)):
        selection = expected["selection"]
        for rank, results in enumerate(found["global"][number] for found in of_ranks):
            found, own = results[step], results[step]["selection"]
            first, last = sum(sizes[:rank]), sum(sizes[: rank + 1])
            selected = [p - first for p in selection.positions.tolist() if first <= p < last]
            assert same_bits(own.scores, selection.scores[first:last].clone())
            assert own.positions.tolist() == (selected or top_k(own.scores, 1).tolist())
            assert own.is_dummy == (not selected)
            assert own.loss_weight == len(selected) * len(of_ranks) / len(selection.positions)
            assert same_bits(own.payoff, selection.payoff)
            assert own.num_non_finite == selection.num_non_finite
            if selection.example_weights is not None and selected:
                is_own = (selection.positions >= first) & (selection.positions < last)
                assert same_bits(own.example_weights, selection.example_weights[is_own])
            if selection.index is not None:
                assert same_bits(own.index, selection.index)
            assert same_bits(found["group_weights"], expected["group_weights"])
            assert same_bits(found["generator"], expected["generator"])
            assert found["state"].keys() == expected["state"].keys()
            assert all(same_bits(found["state"][key], value) for key, value in expected["state"].items())


def test_the_cases_hold_what_they_are_for(of_ranks):
    cases = map(str, cases_of(len(of_ranks)))
    results = dict(zip(cases, zip(*(found["global"] for found in of_ranks), strict=True), strict=True))
    alone = [rounds[0]["selection"] for rounds in results[str(("rho_loss", {}, "one_rank_only"))]]
    assert [selection.is_dummy for selection in alone] == [False] + [True] * (len(of_ranks) - 1)
    assert sum(selection.loss_weight for selection in alone) == len(of_ranks)
    broken = [rounds[0]["selection"] for rounds in results[str(("rho_loss", {}, "a_broken_rank"))]]
    assert {selection.num_non_finite for selection in broken} == {7}
    assert broken[-1].positions.tolist() == [0]
    assert broken[-1].scores.tolist() == [-torch.inf] * SIZES[len(of_ranks)][-1]
    few = [rounds[0]["selection"] for rounds in results[str(("rho_loss", {}, "few_finite"))]]
    assert few[0].positions.tolist() in ([0, 1], [1, 0])


def test_ids_of_local_selections_are_those_of_all_ranks(of_ranks):
    results = [found["local"]["rs2"] for found in of_ranks]
    for rounds in zip(*results, strict=True):
        for found in rounds:
            assert len(found["selection"].index) == len(of_ranks)
            assert same_bits(found["selection"].index, rounds[0]["selection"].index)
            assert same_bits(found["state"]["num_times_selected"], rounds[0]["state"]["num_times_selected"])
    assert int(rounds[0]["state"]["num_times_selected"].sum()) == ranks.NUM_ROUNDS * len(of_ranks)


def test_local_group_dro_weights_own_losses_and_moves_by_the_mean(of_ranks):
    selector, sizes = ranks.make_selector("group_dro", {}), SIZES[len(of_ranks)]
    cumulative_payoff = torch.zeros(NUM_GROUPS, dtype=torch.float64)
    for step in range(ranks.NUM_ROUNDS):
        whole = ranks.make_candidates(selector, seed=step)
        payoffs = []
        for rank, found in enumerate(of_ranks):
            own = found["local"]["group_dro"][step]["selection"]
            chosen = ranks.part_of(whole, rank, sizes).take(own.positions)
            payoffs.append(torch.zeros(NUM_GROUPS).double().index_add_(0, chosen.groups, -chosen.model_loss.double()))
            q = torch.softmax(-0.01 * (cumulative_payoff + payoffs[-1]), dim=0)
            assert own.example_weights.tolist() == pytest.approx([float(q[chosen.groups])], abs=1e-6)
        cumulative_payoff += torch.stack(payoffs).mean(dim=0)
        for found in of_ranks:
            state = found["local"]["group_dro"][step]["state"]["weighting.cumulative_payoff"]
            assert state.tolist() == pytest.approx(cumulative_payoff.tolist(), abs=1e-12)


@pytest.mark.parametrize("weighting", ["per_point", "per_step"])
def test_local_selections_add_up_their_payoffs(of_ranks, weighting):
    selector = ranks.make_selector("reducr", {"holdout_weighting": weighting})
    sizes = SIZES[len(of_ranks)]
    for step in range(ranks.NUM_ROUNDS):
        whole = ranks.make_candidates(selector, seed=step)
        parts = [ranks.part_of(whole, rank, sizes) for rank in range(len(of_ranks))]
        selections = [selector.select(part, num_selected=1) for part in parts]
        chosen = [part.take(selection.positions) for part, selection in zip(parts, selections, strict=True)]
        excess = torch.cat([selector.excess(candidates) for candidates in chosen]).double().sum(dim=0)
        num_subtractions = len(of_ranks) if weighting == "per_point" else 1
        payoff = excess - num_subtractions * selector.group_holdout_loss
        for rank, results in enumerate(found["local"][weighting] for found in of_ranks):
            own = results[step]["selection"]
            assert own.positions.tolist() == selections[rank].positions.tolist()
            assert same_bits(own.scores, selections[rank].scores)
            assert own.payoff.tolist() == pytest.approx(payoff.tolist(), abs=1e-12)
            assert own.loss_weight == 1
            assert same_bits(own.payoff, of_ranks[0]["local"][weighting][step]["selection"].payoff)
            assert same_bits(results[step]["group_weights"], of_ranks[0]["local"][weighting][step]["group_weights"])
        selector.update(of_ranks[0]["local"][weighting][step]["selection"])
    assert len(set(selector.group_weights.tolist())) == NUM_GROUPS


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_mode", r"processes train together and `distributed` is None: .*Set `distributed='global'`"),
        ("unknown_mode", r"unknown distributed mode 'globl'. Did you mean 'global'"),
        ("all_broken", r"step 0: the losses of all 20 candidates are NaN or infinite"),
        ("too_many", r"between 1 and the number of candidates of all \d ranks, 20; got 21"),
        ("no_number", r"TypeError: num_selected must be a whole number; got 2.5"),
        ("different_numbers", r"num_selected must be the same on all ranks; got 5, 6"),
        ("none_on_one", r"rank 1 got an empty batch \(sizes: \d+, 0.*\)\. Use `drop_last=True`"),
        ("dtypes", r"the candidates of the ranks differ in their fields, dtypes"),
        ("states", r"different states: they have different holdout losses\. Pass the mean over all ranks to set"),
        ("states_local", r"the selectors of the ranks are in different states: they have different holdout losses"),
        ("epochs", r"different states: they are in epochs 0, 1.* fewer batches, .* use `drop_last=True` or a Distribu"),
        ("payoffs", r"they differ in weighting\.cumulative_payoff\. Load the same checkpoint on all ranks, and update"),
        (
            "generators",
            r"'rho_loss' draws random numbers, and the random generators of the ranks are in different states",
        ),
        ("a_function_of_the_number", r"between 1 and the number of candidates of all \d ranks, 20; got 21"),
    ],
)
def test_what_does_not_fit_is_refused_by_all(of_ranks, fault, message):
    assert re.search(message, everyone_said(of_ranks, "faults", fault))


@pytest.mark.parametrize(
    ("part", "fault", "message"),
    [
        ("faults", "a_field_missing_on_one", r"'reducr' needs Candidates.model_loss; got"),
        ("faults", "a_field_missing_on_one_local", r"'reducr' needs Candidates.model_loss; got"),
        ("faults", "one_broken_local", r"step 0: the losses of all \d candidates are NaN or infinite"),
        ("tables", "outside", r"indices must be in 0..6; got 7..7"),
        ("tables", "columns_of_a_kind", r"merges tables of kind 'group_loss'; got kind 'logits'"),
        ("tables", "failing", r"out of memory"),
    ],
)
def test_what_one_rank_raises_ends_all(of_ranks, part, fault, message):
    said = [found[part][fault] for found in of_ranks]
    kind, own = said[1].split(": ", maxsplit=1)
    assert re.search(message, own)
    assert {text for rank, text in enumerate(said) if rank != 1} == {f"{kind}: rank 1 raised {kind}: {own}"}


def test_ranks_that_need_not_agree_on_a_generator_may_differ(of_ranks):
    assert everyone_said(of_ranks, "faults", "generators_that_none_draws_from") is None
    assert everyone_said(of_ranks, "faults", "nothing") is None


def test_broken_points_are_warned_of_once_by_one_rank(of_ranks):
    assert [len(found["warnings"]) for found in of_ranks] == [1] + [0] * (len(of_ranks) - 1)
    assert of_ranks[0]["warnings"][0].startswith("step 0: 7 of all ranks' candidates have a NaN or infinite loss")


def test_exchanges_keep_every_bit(of_ranks):
    count = len(of_ranks)
    for found in (found["tensors"] for found in of_ranks):
        for dtype, everyone in found["stacked"].items():
            for rank, tensor in enumerate(everyone):
                assert same_bits(tensor.clone(), of_ranks[rank]["tensors"]["sent"][dtype])
        assert [part.tolist() for part in found["uneven"]] == [[[rank] * 2] * rank for rank in range(count)]
        assert [part.shape for part in found["nothing"]] == [(0, 3)] * count
        assert found["scalar"].tolist() == list(range(1, count + 1))
        assert found["summed"].tolist() == pytest.approx([0.1 * (s := count * (count + 1) // 2), 0.2 * s])
        assert same_bits(found["summed"], of_ranks[0]["tensors"]["summed"])
    assert sorted(item for found in of_ranks for item in found["tensors"]["share"]) == list(range(7))


def test_the_holdout_loss_of_shares_is_that_of_the_whole(of_ranks):
    expected = ranks.holdout(1)
    for found in (found["holdout"] for found in of_ranks):
        for name in ("shards", "whole", "moving"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-14)
            assert same_bits(found[name], of_ranks[0]["holdout"][name])
    assert "group 1 of 2 has none" in everyone_said(of_ranks, "holdout", "missing")
    assert "The holdout loss of group 1 is not finite" in everyone_said(of_ranks, "holdout", "broken")


def test_tables_of_shared_rows_are_those_of_one_process(of_ranks):
    for found in (found["tables"] for found in of_ranks):
        assert found["large_is_exact"]
        assert same_bits(torch.from_numpy(found["joint"]), ranks.table_values(3, 2, 2))
        assert same_bits(torch.from_numpy(found["losses"]), ranks.table_values(7))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("twice", r"7 examples must come exactly once; 1 did not, such as index 0, which came \d times"),
        ("missing", r"7 examples must come exactly once; \d did not, such as index \d, which came 0 times"),
        ("shapes", r"the tables of all ranks must have the same shape; got \[\(7, 1\), \(7, 2\)"),
        ("columns_twice", r"group 0 has a column on \d ranks; every group must belong to one"),
        ("no_columns", r"needs a table on at least one rank; got None on all"),
    ],
)
def test_faults_of_tables_are_raised_by_all(of_ranks, fault, message):
    assert re.search(message, everyone_said(of_ranks, "tables", fault))


def test_tables_of_shared_columns_are_those_of_one_process(of_ranks):
    expected = ranks.table_values(10, NUM_GROUPS + 1).numpy()
    expected[:, NUM_GROUPS] = np.nan
    for found in of_ranks:
        np.testing.assert_array_equal(found["tables"]["columns"], expected)


def test_fifty_steps_are_those_of_one_process(of_ranks):
    expected = ranks.training()
    found = [found["training"] for found in of_ranks]
    for step, selected in enumerate(expected["index"]):
        assert sorted(index for rank in found for index in rank["index"][step]) == sorted(selected)
    for rank in found:
        torch.testing.assert_close(rank["parameters"], expected["parameters"], rtol=0, atol=1e-5)
        torch.testing.assert_close(rank["group_weights"], expected["group_weights"], rtol=0, atol=1e-6)
        assert same_bits(rank["group_weights"], found[0]["group_weights"])
        assert same_bits(rank["parameters"], found[0]["parameters"])
    assert sum(rank["num_stand_ins"] for rank in found) > 0
    assert float((expected["group_weights"][-1] - 0.25).abs().max()) > 0.01


def test_a_rank_with_nan_inputs_only_adds_nothing_to_the_gradient(of_ranks):
    """Its part of the mean over ranks is zero, not NaN."""
    found = [found["nan_inputs"] for found in of_ranks]
    assert [rank["is_dummy"] for rank in found] == [number == 1 for number in range(len(found))]
    assert found[1]["loss"] == 0
    assert torch.equal(found[1]["gradient"], torch.zeros_like(found[1]["gradient"]))
    assert all(rank["loss"] > 0 and bool(rank["gradient"].isfinite().all()) for rank in found if not rank["is_dummy"])


def test_a_report_counts_what_all_ranks_select_and_no_dummies(of_ranks):
    count = len(of_ranks)
    for report in (found["nan_inputs"]["report"] for found in of_ranks):
        assert (report.num_candidates, report.num_selected) == (6 * count, 3 * count)
        assert sum(report.group_counts) == 3 * count
        assert report.num_non_finite == 0  # counted when the step is taken


def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    """Well within the timeout of the process group; ``run_ranks`` waits twice that and no longer."""
    statuses, errors = ranks.run_ranks("dying", 3, tmp_path, may_fail=True)
    assert statuses[1] == -signal.SIGKILL
    for rank in (0, 2):
        assert statuses[rank] == 1
        assert "RuntimeError" in errors[rank]
        assert "select_distributed" in errors[rank]
