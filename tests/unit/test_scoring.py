"""What makes the scoring pass cheaper: what is scored within a budget, what is remembered, how the model is called."""

import copy
import re

import pytest
import torch
from torch import nn

import reducr
from reducr.models import SmallCNN, resnet18
from reducr.scoring import Scoring, ScoringBudget, ScoringForward, shrunk

NUM_POINTS = 20


def rule(name="train_loss", **options):
    return reducr.make_selector(name, num_groups=3, sampler="top_k", **options)


def known(size):
    """What is known of candidates before the model has scored them."""
    return reducr.Candidates(groups=torch.zeros(size, dtype=torch.int64))


def filled(fraction=0.5, *, losses=None, **options):
    """A budget that remembers of point i the loss i."""
    budget = ScoringBudget(fraction, **options)
    index = torch.arange(NUM_POINTS)
    budget.reserve(index)
    budget.remember(index, index.float() if losses is None else losses)
    return budget


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fraction": 0},
            "must be in (0, 1], the fraction of the candidates to score; got 0.",
        ),
        ({"fraction": 40}, "must be in (0, 1], the fraction of the candidates to score; got 40."),
        ({"fraction": "0.4"}, "must be in (0, 1], the fraction of the candidates to score; got 0.4."),
        (
            {"fraction": 0.4, "oldest_fraction": 1.5},
            "`oldest_fraction` must be in [0, 1], the fraction of the scored examples that is chosen by age alone; got",
        ),
        ({"fraction": 0.4, "num_examples": 0}, "num_examples must be a whole number of at least 1; got 0."),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringBudget(**options)


@pytest.mark.parametrize("name", ["uniform", "irreducible_loss", "gradient_norm", "entropy", "bald", "class_balanced"])
def test_rules_that_do_not_score_each_point_by_its_model_loss_are_refused(name):
    reads = {
        "uniform": "nothing", "irreducible_loss": "irreducible_loss", "gradient_norm": "logits, targets",
        "entropy": "logits", "bald": "logits", "class_balanced": "groups",
    }  # fmt: skip
    message = (
        "A scoring budget ranks candidates by remembered model losses, so it serves rules that score each example by "
        f"its model loss, such as 'reducr' and 'rho_loss'; {name!r} reads {reads[name]}. Choose such a rule"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Scoring(budget=ScoringBudget(0.5)).check_fit(rule(name), fraction=0.1, distributed=None)


def test_a_rule_that_reads_logits_beside_the_model_loss_is_refused():
    with pytest.raises(ValueError, match="'loss_minus_conditional_entropy' reads logits, model_loss"):
        Scoring(budget=ScoringBudget(0.5)).check_fit(
            rule("loss_minus_conditional_entropy"), fraction=0.1, distributed=None
        )


@pytest.mark.parametrize("name", ["train_loss", "rho_loss", "reducr", "fixed_weights", "payoff"])
def test_rules_that_score_by_the_model_loss_are_served(name):
    options = {"group_weights": [1.0, 1.0, 0.0]} if name == "fixed_weights" else {}
    Scoring(budget=ScoringBudget(0.1)).check_fit(rule(name, **options), fraction=0.1, distributed=None)


def test_more_selected_than_scored_and_several_ranks_are_refused():
    with pytest.raises(ValueError, match=r"A scoring budget of 0.2 of the candidates cannot select 0.3 of them: only"):
        Scoring(budget=ScoringBudget(0.2)).check_fit(rule(), fraction=0.3, distributed=None)
    with pytest.raises(TypeError, match=r"got str. To score two fifths of the candidates, pass `budget=0.4`."):
        Scoring(budget="0.2")
    with pytest.raises(ValueError, match="A scoring budget does not work with distributed='global': each rank would"):
        Scoring(budget=ScoringBudget(0.2)).check_fit(rule(), fraction=0.1, distributed="global")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            None,
            "A scoring budget remembers the loss of every example by its index, and these batches have none. Let the",
        ),
        (torch.zeros(3), "An index must be one integer per example, (B,); got torch.float32 (3,)."),
        (torch.zeros(3, 1).long(), "An index must be one integer per example, (B,); got torch.int64 (3, 1)."),
        (torch.tensor([0, -1]), "needs indices in 0..2147483647; got -1. Number the examples of the data"),
        (torch.tensor([0, 2**40]), "needs indices in 0..2147483647; got 1099511627776."),
    ],
)
def test_points_without_a_number_are_refused(index, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringBudget(0.5).reserve(index)


def test_an_index_beyond_the_number_of_points_that_was_given_is_refused():
    with pytest.raises(ValueError, match=re.escape("needs indices in 0..9; got 10.")):
        ScoringBudget(0.5, num_examples=10).reserve(torch.tensor([3, 10]))


# what is scored


def test_the_best_by_remembered_losses_are_scored_in_the_order_of_the_batch():
    index = torch.tensor([4, 19, 3, 18, 17, 0])
    scored = filled(oldest_fraction=0.0).positions(index, known(6), rule(), num_selected=1)
    assert scored.tolist() == [1, 3, 4]


def test_a_point_never_scored_counts_with_the_highest_loss_scored_last_and_a_broken_one_not_at_all():
    losses = torch.arange(NUM_POINTS).float()
    losses[12] = torch.nan
    budget = filled(losses=losses, oldest_fraction=0.0)
    budget.remember(torch.tensor([3, 4]), torch.tensor([0.5, 17.5]))
    index = torch.tensor([*range(10, NUM_POINTS), 25, 24])
    budget.reserve(index)
    for fraction, expected in ((0.1, [9]), (0.3, [8, 9, 10]), (0.35, [8, 9, 10, 11]), (0.42, [7, 8, 9, 10, 11])):
        budget.fraction = fraction
        assert budget.positions(index, known(12), rule(), num_selected=1).tolist() == expected
    budget.fraction = 11 / 12
    assert budget.positions(index, known(12), rule(), num_selected=1).tolist() == [0, 1, *range(3, 12)]
    budget.remember(torch.tensor([3, 4]), torch.tensor([0.5, torch.nan]))  # nobody knows
    assert float(budget.high_loss) == 100


def test_with_nothing_remembered_the_irreducible_losses_decide():
    budget = ScoringBudget(0.5, oldest_fraction=0.0, num_examples=4)
    candidates = reducr.Candidates(irreducible_loss=torch.tensor([0.3, 0.1, 0.2, 0.4]))
    assert budget.positions(torch.arange(4), candidates, rule("rho_loss"), num_selected=1).tolist() == [1, 2]


def test_the_rest_are_those_scored_longest_ago():
    budget = filled(fraction=0.4, oldest_fraction=0.5)  # the four best, and four by age
    for seen in ([0, 1, 2], [5, 6, 7, 8, 9, 10, 11, 12, 13]):
        budget.remember(torch.tensor(seen), torch.tensor(seen).float())
    index = torch.arange(NUM_POINTS)
    assert budget.positions(index, known(NUM_POINTS), rule(), num_selected=1).tolist() == [3, 4, *range(14, 20)]


def test_of_equally_old_points_some_are_drawn_all_alike():
    budget = filled(oldest_fraction=0.5)
    index, generator = torch.arange(NUM_POINTS), seeded()
    counts = torch.zeros(NUM_POINTS, dtype=torch.int64)
    for _ in range(3000):
        scored = budget.positions(index, known(NUM_POINTS), rule(), num_selected=1, generator=generator)
        assert len(scored) == 10
        counts[scored] += 1
    assert counts[15:].tolist() == [3000] * 5
    # five of fifteen: a thousand times each, with a standard deviation of 26
    assert 1000 - 4 * 26 < int(counts[:15].min()) <= int(counts[:15].max()) < 1000 + 4 * 26


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.95])
def test_no_point_is_forgotten(fraction):
    """With k points by age out of B, each is scored again within B / k passes over the same batches."""
    budget = filled(fraction=fraction, oldest_fraction=0.25)
    num_by_age = round(0.25 * int(fraction * NUM_POINTS))
    index, generator = torch.arange(NUM_POINTS), seeded()
    for _ in range(50):
        scored = budget.positions(index, known(NUM_POINTS), rule(), num_selected=1, generator=generator)
        budget.remember(index[scored], budget.loss[index[scored]])
        assert int((budget.step - budget.scored_step).max()) <= -(-NUM_POINTS // num_by_age) + 1


def test_what_the_selector_makes_of_a_loss_decides_and_not_the_loss_itself():
    budget = filled(oldest_fraction=0.0, fraction=0.1)
    irreducible = torch.arange(NUM_POINTS).float()
    irreducible[[5, 11]] -= 3
    candidates = reducr.Candidates(irreducible_loss=irreducible)
    assert budget.positions(torch.arange(NUM_POINTS), candidates, rule("rho_loss"), num_selected=1).tolist() == [5, 11]


@pytest.mark.parametrize(("fraction", "num_selected", "expected"), [(0.29, 1, 29), (0.1, 12, 12), (1.0, 5, 100)])
def test_how_many_are_scored(fraction, num_selected, expected):
    budget = ScoringBudget(fraction, num_examples=100)
    scored = budget.positions(torch.arange(100), known(100), rule(), num_selected=num_selected)
    assert len(scored) == expected
    assert scored.tolist() == sorted(set(scored.tolist()))


def test_a_budget_of_all_draws_nothing():
    generator = seeded()
    before = generator.get_state()
    ScoringBudget(1.0, num_examples=9).positions(torch.arange(9), known(9), rule(), num_selected=2, generator=generator)
    assert torch.equal(generator.get_state(), before)


# what is remembered


def test_losses_and_their_steps_are_remembered_by_index():
    budget = ScoringBudget(0.5)
    budget.reserve(torch.tensor([2, 5]))
    budget.remember(torch.tensor([2, 5]), torch.tensor([0.25, torch.nan], dtype=torch.float64))
    budget.remember(torch.tensor([1]), torch.tensor([3.0]))
    assert budget.loss.dtype == torch.float32
    assert budget.loss[1:3].tolist() == [3.0, 0.25]
    assert bool(budget.loss[5].isnan())
    assert budget.scored_step.tolist() == [-1, 1, 0, -1, -1, 0]
    assert float(budget.high_loss) == 3.0
    assert int(budget.step) == 2


def test_the_memory_grows_to_the_largest_index_and_keeps_what_it_has():
    budget = filled()
    budget.reserve(torch.tensor([NUM_POINTS]))
    assert len(budget.loss) == len(budget.scored_step) == 2 * NUM_POINTS
    budget.reserve(torch.tensor([1000]))
    assert len(budget.loss) == 1001
    assert budget.loss[:NUM_POINTS].tolist() == list(range(NUM_POINTS))
    assert budget.scored_step[:NUM_POINTS].tolist() == [0] * NUM_POINTS
    assert bool((budget.scored_step[NUM_POINTS:] == -1).all())
    assert sum(tensor.element_size() for tensor in (budget.loss, budget.scored_step)) == 8  # bytes a point


@pytest.mark.parametrize("num_examples", [None, NUM_POINTS])
def test_the_state_is_all_that_matters(num_examples):
    budget = filled(num_examples=num_examples)
    other = ScoringBudget(0.5, num_examples=num_examples)
    other.load_state_dict(copy.deepcopy(budget.state_dict()))
    within = nn.ModuleDict({"budget": ScoringBudget(0.5, num_examples=num_examples)})
    within.load_state_dict({f"budget.{name}": value for name, value in budget.state_dict().items()})
    for one in (other, within["budget"]):
        for name, value in budget.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    index = torch.arange(NUM_POINTS)
    scored = [
        one.positions(index, known(NUM_POINTS), rule(), num_selected=1, generator=seeded()) for one in (budget, other)
    ]
    assert torch.equal(*scored)


def test_the_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match="loss has 20 examples, not 30; scored_step has 20 examples, not 30"):
        ScoringBudget(0.5, num_examples=30).load_state_dict(filled().state_dict())
    with pytest.raises(
        ValueError, match="the state does not fit this ScoringBudget: scored_step is missing; step is missing"
    ):
        ScoringBudget(0.5).load_state_dict({"loss": torch.zeros(3)})
    with pytest.raises(ValueError, match=re.escape("loss must be torch.float32 (0,), not torch.float32 (2, 2)")):
        ScoringBudget(0.5).load_state_dict(filled().state_dict() | {"loss": torch.zeros(2, 2)})


def test_the_memory_keeps_its_precision_when_a_model_around_it_is_cast():
    budget = nn.Sequential(filled()).half()[0]
    assert budget.loss.dtype == torch.float32


# how the model is called


def images(size, *, num_images=4):
    return torch.rand(num_images, 1, size, size, generator=seeded())


def test_shrunk_images_are_means_of_what_they_cover():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert shrunk(image, 0.5).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert shrunk(torch.rand(2, 3, 28, 28), 0.3).shape == (2, 3, 8, 8)
    assert shrunk(torch.rand(2, 3, 2, 9), 0.1).shape == (2, 3, 1, 1)


def test_the_model_gets_small_images_and_everything_else_as_it_is():
    called = ScoringForward(Given(), Scoring(resolution=0.5))
    image, mask = images(8), torch.ones(4, 3)
    assert called(image)[0][0].shape == (4, 1, 4, 4)
    (positional, named) = called(mask, pixels=image)
    assert positional[0] is mask
    torch.testing.assert_close(named["pixels"], shrunk(image, 0.5))


class Given(nn.Module):
    """A model that gives what it is given."""

    def forward(self, *arguments, **named):
        return arguments, named


def test_a_model_that_does_not_take_small_images_is_refused():
    model = SmallCNN(in_channels=1, image_size=16, num_classes=3)
    message = (
        "The model cannot score images of 8 x 8 in place of 16 x 16 (resolution 0.5): mat1 and mat2 shapes cannot be "
        "multiplied (4x48 and 192x96). Use a model that takes images of any size"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringForward(model, Scoring(resolution=0.5))(images(16))


def test_inputs_that_are_no_images_are_refused():
    message = (
        "A scoring resolution of 0.5 needs images (B, K, H, W) as inputs; got (4, 7), str. Leave `resolution` out."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringForward(Given(), Scoring(resolution=0.5))(torch.rand(4, 7), name="a")


@pytest.mark.parametrize("resolution", [0.0, 1.0, 2, "half"])
def test_a_resolution_out_of_range_is_refused(resolution):
    message = "`resolution` must be in (0, 1), the fraction of an image's height and width"
    with pytest.raises(ValueError, match=re.escape(message)):
        Scoring(resolution=resolution)


def test_small_images_must_not_move_running_statistics():
    model = resnet18(3, in_channels=1, width=4)
    message = "Scoring in mode 'train' would update the running statistics of 'features.1' with images at a resolution"
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringForward(model, Scoring(resolution=0.5))
    assert ScoringForward(model, Scoring(mode="eval", resolution=0.5))(images(16)).shape == (4, 3)
    ScoringForward(SmallCNN(in_channels=1, image_size=16, num_classes=3), Scoring(resolution=0.5))  # has none


def test_the_model_is_called_in_the_precision_asked_for():
    model = nn.Linear(4, 3)
    inputs = torch.rand(5, 4)
    logits = ScoringForward(model, Scoring(autocast=torch.bfloat16))(inputs)
    assert logits.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(inputs), logits)
        assert torch.equal(ScoringForward(model, Scoring())(inputs), logits)  # the one at hand
    with pytest.raises(
        ValueError, match=r"`autocast` must be torch.bfloat16, torch.float16 or None; got torch.float64."
    ):
        Scoring(autocast=torch.float64)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    message = (
        "Compiling the scoring pass needs a C++ compiler: neither $CXX nor g++ nor clang++ exists here. Install g++"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoringForward(nn.Linear(4, 3), Scoring(compile=True))
    with pytest.raises(ValueError, match="compile must be True or False; got 'yes'"):
        Scoring(compile="yes")
