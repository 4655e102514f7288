"""What is fuzzed: for each part of the public interface, inputs and what must come of them.

Every input ends in a right answer, which is compared with a slow one where that is cheap, or in a ValueError or
TypeError that says what came. Anything else is a finding.
"""

import copy
import math
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import reducr
from fuzz import values
from reducr.batch import Batch, BatchSpec, Candidates, Selection
from reducr.batch.nested import index_batch
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, PlainIrreducibleLoss, TableLogits, TableLoss
from reducr.irreducible.table import KINDS
from reducr.scoring import GroupHoldoutLoss, Scoring, num_selected_of
from reducr.selectors import SAMPLERS
from reducr.training.checkpoints import Checkpoints
from reference import scores as reference_scores
from reference.reducr_step import ReferenceOptions, excess_of, weights_of

REFUSED = (ValueError, TypeError)
TORCH_INTERNALS = ("internal assert", "aten::", "please report")
NAMES = sorted(reducr.SELECTORS)
FLOAT32_MAX = torch.finfo(torch.float32).max


class RefusedError(Exception):
    """The input was refused with a proper error."""


@contextmanager
def refusing():
    """Ends the case where a ValueError or TypeError says what came; any other error goes on as a finding."""
    try:
        yield
    except REFUSED as error:
        if len(str(error)) < 10 or any(word in str(error).lower() for word in TORCH_INTERNALS):
            raise AssertionError(f"an error that does not say what came: {error!r}") from error
        raise RefusedError from error


def close(one, other, scale=0.0):
    """Whether two floats agree up to float32's rounding at numbers of the size ``scale``."""
    return abs(one - other) <= 1e-5 * max(abs(one), abs(other), scale, 1e-30)


def assert_simplex(selector):
    weights = selector.group_weights
    assert weights.shape == (selector.num_groups,)
    assert weights.dtype == torch.float64
    assert bool(torch.isfinite(weights).all()), weights
    assert float(weights.min()) >= 0
    assert math.isclose(float(weights.sum()), 1.0, abs_tol=1e-9), weights
    assert bool(torch.isfinite(selector.cumulative_payoff).all())


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(bits(one[key]), bits(other[key])) for key in one)


def bits(tensor):
    """The bytes of a tensor, so that NaN equals NaN and zero is not minus zero."""
    copy_of = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return copy_of.flatten().view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)


# selectors and their options

OPTION_NAMES = (
    "step_size", "clip", "use_holdout", "use_irreducible", "use_model_loss", "initial_payoff", "payoff_decay",
    "holdout_weighting", "group_weights", "num_dropout_samples", "sampler", "temperature", "temperature_schedule",
    "final_temperature", "num_epochs", "beta", "pressure", "uniform_first_epochs", "uniform_last_epochs", "unknown",
    "alpha", "prune_probability", "holdout_loss", "loss_temperature", "largest_loss",
)  # fmt: skip
WORDS = ("per_point", "per_step", "fixed", "linear", "geometric", *SAMPLERS, "topk")


@st.composite
def any_options(draw):
    option = st.one_of(values.anything, st.sampled_from(WORDS), st.booleans())
    return draw(st.dictionaries(st.sampled_from(OPTION_NAMES), option, max_size=4))


OWN_VALUES = {
    "group_dro": {"step_size": [0.0, 0.01, 10.0, 1e300]},
    "infobatch": {"prune_probability": [0.0, 0.5, 1 - 1e-12]},
    "rcap": {"loss_temperature": [1e-320, 2.0, 1e300], "largest_loss": [None, 1e-320, 2.0, 1e300]},
    "bayesian_selection": {"alpha": [0.0, 0.2, 1.0]},
    "priority_sampling": {
        "step_size": [0.0, 1e-4, 1e300],
        "uniform_share": [0.0, 0.5, 1.0],
        "irreducible_temperature": [1e-320, 2.0, 1e300],
        "holdout_loss": ["cross_entropy", "zero_one"],
    },
}


@st.composite
def right_options(draw, name):
    """Options of a selector that are in range, often at its ends."""
    options = {}
    sampler = draw(st.sampled_from([None, "top_k", *SAMPLERS]))
    if sampler is not None:
        options["sampler"] = sampler
    for option, wanted, numbers in (
        ("temperature", "softmax", [1e-320, 1e-3, 1.0, 1e6, 1e300]),
        ("beta", "power", [0.0, 0.5, 3.0, 1e9, 1e308]),
        ("beta", "rank", [0.0, 0.5, 3.0, 1e9, 1e308]),
        ("pressure", "exponential_rank", [1.0, 100.0, 1e308]),
    ):
        if sampler == wanted and draw(st.booleans()):
            options[option] = draw(st.sampled_from(numbers))
    if draw(st.integers(0, 7)) == 0:
        options |= {"uniform_first_epochs": draw(st.integers(0, 2))}
    for option, own in OWN_VALUES.get(name, {}).items():
        options[option] = draw(st.sampled_from(own))
    if name == "reducr":
        options |= {
            "step_size": draw(st.sampled_from([0.0, 1e-4, 0.1, 10.0, 1e300])),
            "clip": draw(st.booleans()),
            "use_holdout": draw(st.booleans()),
            "payoff_decay": draw(st.sampled_from([1.0, 0.9, 1e-300])),
            "holdout_weighting": draw(st.sampled_from(["per_point", "per_step"])),
            **draw(st.sampled_from([{}, {"use_irreducible": False}, {"use_model_loss": False}])),
        }
    return options


@st.composite
def selectors(draw, names=NAMES):
    name, num_groups = draw(st.sampled_from(names)), draw(st.integers(1, 4))
    options = draw(right_options(name))
    if name == "reducr" and draw(st.integers(0, 3)) == 0:
        payoffs = st.sampled_from([0.0, 5.0, -1e300, 1.7e308])
        options["initial_payoff"] = draw(st.lists(payoffs, min_size=num_groups, max_size=num_groups))
    if name == "fixed_weights" and draw(st.booleans()):
        weights = st.sampled_from([0.0, 1.0, 5e-324, 1e308])
        given = draw(st.lists(weights, min_size=num_groups, max_size=num_groups))
        options["group_weights"] = given if any(given) else None
    return lambda: reducr.make_selector(name, num_groups=num_groups, **options)


@st.composite
def made_selectors(draw):
    name = draw(st.sampled_from(NAMES))
    options = draw(right_options(name)) | draw(values.mostly(st.just({}), any_options(), one_in=2))
    name = draw(values.mostly(st.just(name), st.one_of(st.text(max_size=5), values.odd_values), one_in=30))
    return name, draw(values.mostly(st.integers(1, 4), values.anything, one_in=15)), options


def check_made_selector(case):
    name, num_groups, options = case
    with refusing():
        selector = reducr.make_selector(name, num_groups=num_groups, **options)
    assert_simplex(selector)
    size, num_groups = 5, selector.num_groups
    selector.set_group_holdout_loss(torch.ones(num_groups))
    fields = {
        "model_loss": torch.arange(float(size)),
        "irreducible_loss": torch.ones(size),
        "group_irreducible_loss": torch.ones(size, num_groups),
        "logits": torch.eye(size, 3),
        "targets": torch.zeros(size, dtype=torch.int64),
        "features": torch.eye(size, 2),
        "groups": torch.zeros(size, dtype=torch.int64),
        "index": torch.arange(size),
    }
    candidates = Candidates(**fields)
    selection = selector.select(candidates, num_selected=3, generator=values.seeded(0))
    check_selection(selector, candidates, selection, num_selected=3)
    selector.update(selection)
    assert_simplex(selector)


# candidates

FIELDS = (
    "model_loss", "irreducible_loss", "group_irreducible_loss", "logits", "features", "targets", "groups", "index",
)  # fmt: skip


@st.composite
def fields_of(draw, size, *, num_groups, num_classes, names=FIELDS, dtypes=values.FLOATS):
    shapes = {
        "model_loss": (size,),
        "irreducible_loss": (size,),
        "group_irreducible_loss": (size, num_groups),
        "logits": (*draw(st.sampled_from([(), (), (1,), (3,)])), size, num_classes),
        "features": (size, 2),
    }
    fields = {name: draw(values.floats(shapes[name], dtypes=dtypes)) for name in shapes if name in names}
    for name, stop in (("targets", num_classes), ("groups", num_groups), ("index", 50)):
        if name in names:
            fields[name] = draw(values.integers((size,), stop))
    return fields


@st.composite
def any_fields(draw):
    size = draw(st.integers(0, 6))
    names = draw(st.sets(st.sampled_from(FIELDS)))
    num_classes = draw(values.mostly(st.integers(1, 3), st.just(0)))
    fields = draw(fields_of(size, num_groups=draw(st.integers(0, 3)), num_classes=num_classes, names=names))
    for name in fields:
        if draw(st.integers(0, 19)) == 0:
            fields[name] = draw(st.one_of(values.any_tensor(), values.sparse_tensors, values.odd_values))
    return fields


def check_candidates(fields):
    with refusing():
        candidates = Candidates(**fields)
    given = candidates.given()
    sizes = {tensor.shape[-2] if name == "logits" else len(tensor) for name, tensor in given.items()}
    assert sizes == {candidates.num_candidates}
    assert given.keys() == {name for name, value in fields.items() if value is not None}
    positions = torch.arange(candidates.num_candidates - 1, -1, -2)
    for name, tensor in candidates.take(positions).given().items():
        axis = -2 if name == "logits" else 0
        expected = given[name].movedim(axis, 0)[positions].movedim(0, axis)
        assert torch.equal(bits(tensor), bits(expected)), name


# selecting, updating, saving: any sequence


@st.composite
def sequences(draw):
    make = draw(selectors())
    selector = make()
    num_groups = selector.num_groups
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        act = draw(st.sampled_from(["select", "select", "select", "holdout", "epoch", "save", "merge", "load"]))
        if act in ("select", "merge"):
            steps.append((act, [draw(selections(selector)) for _ in range(1 if act == "select" else 2)]))
        elif act == "holdout":
            right = values.floats((num_groups,)) | st.lists(st.floats(0, 9), min_size=num_groups, max_size=num_groups)
            steps.append((act, draw(values.mostly(right, st.one_of(values.any_tensor(), values.anything)))))
        elif act == "epoch":
            steps.append((act, draw(values.mostly(st.integers(0, 5), st.one_of(values.anything, st.integers())))))
        elif act == "load":
            steps.append(
                (act, draw(st.sampled_from(["other", "missing", "unknown", "nan", "dtype", "float", None, 3])))
            )
        else:
            steps.append((act, None))
    return make, draw(st.booleans()), steps


@st.composite
def selections(draw, selector):
    """Fields, nearly always those that the selector needs, and a number to select."""
    size = draw(st.integers(0, 12))
    names = (set(selector.needs) or {"groups"}) if draw(st.integers(0, 3)) else set(FIELDS)
    num_classes = draw(st.integers(1, 4))
    fields = draw(fields_of(size, num_groups=selector.num_groups, num_classes=num_classes, names=names))
    if fields and draw(st.integers(0, 15)) == 0:
        name = draw(st.sampled_from(sorted(fields)))
        fields[name] = draw(st.one_of(values.any_tensor(), values.odd_values))
    wrong = st.one_of(st.integers(-1, 14), values.anything)
    return fields, draw(values.mostly(st.integers(1, max(size, 1)), wrong)), draw(values.seeds)


def check_sequence(case):
    make, has_holdout_loss, steps = case
    selector = make()
    if has_holdout_loss:
        selector.set_group_holdout_loss(torch.linspace(0.1, 1.0, selector.num_groups))
    is_refused = False
    for act, given in steps:
        before = {key: value.clone() for key, value in selector.state_dict().items()}
        try:
            selector = ACTS[act](selector, make, given)
        except RefusedError:
            is_refused = True
            assert same_state(selector.state_dict(), before), f"{act} was refused and changed the state"
        assert_simplex(selector)
        holdout = selector.group_holdout_loss
        assert bool(torch.isfinite(holdout).all()) or bool(torch.isnan(holdout).all())
    if is_refused:
        raise RefusedError


def _select(selector, make, given):
    return _merge(selector, make, given)


def _merge(selector, make, given):
    parts = []
    for fields, num_selected, seed in given:
        with refusing():
            candidates = Candidates(**fields)
            selection = selector.select(candidates, num_selected=num_selected, generator=values.seeded(seed))
        check_selection(selector, candidates, selection, num_selected=num_selected)
        again = selector.select(candidates, num_selected=num_selected, generator=values.seeded(seed))
        assert selection.positions.tolist() == again.positions.tolist()
        parts.append(selection)
    merged = selector.merged(parts)
    before, step = selector.cumulative_payoff.tolist(), int(selector.step)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* candidates have a NaN or infinite loss", RuntimeWarning)
        selector.update(merged)
    assert int(selector.step) == step + 1
    decay = getattr(selector.weighting, "payoff_decay", 1.0)
    for old, payoff, new in zip(before, merged.payoff.tolist(), selector.cumulative_payoff.tolist(), strict=True):
        assert math.isclose(new, decay * old + payoff, rel_tol=1e-12, abs_tol=1e-300)
    return selector


def _set_holdout(selector, make, loss):
    with refusing():
        selector.set_group_holdout_loss(loss)
    expected = torch.as_tensor(loss).detach().double()
    assert torch.equal(selector.group_holdout_loss, expected)
    return selector


def _set_epoch(selector, make, epoch):
    with refusing():
        selector.set_epoch(epoch)
    assert int(selector.epoch) == epoch
    return selector


def _save(selector, make, _):
    fresh = make()
    fresh.load_state_dict(copy.deepcopy(selector.state_dict()))
    assert same_state(fresh.state_dict(), selector.state_dict())
    return fresh


def _load(selector, make, fault):
    state = {key: value.clone() for key, value in selector.state_dict().items()}
    key = "weighting.cumulative_payoff"
    if fault == "other":
        state = reducr.make_selector("reducr", num_groups=selector.num_groups + 1).state_dict()
    elif fault == "missing":
        del state[key]
    elif fault == "unknown":
        state["momentum"] = torch.zeros(1)
    elif fault == "nan":
        state[key][0] = math.nan
    elif fault == "dtype":
        state[key] = state[key].half()
    elif fault == "float":
        state["step"] = 1.0
    else:
        state = fault
    with refusing():
        selector.load_state_dict(state)
    raise AssertionError(f"a state with the fault {fault!r} was loaded")


ACTS = {
    "select": _select,
    "merge": _merge,
    "holdout": _set_holdout,
    "epoch": _set_epoch,
    "save": _save,
    "load": _load,
}


def check_selection(selector, candidates, selection, *, num_selected):
    """Positions, scores and payoff are right, whatever the rule and its sampler."""
    size, given = candidates.num_candidates, candidates.given()
    scores = selection.scores.tolist()
    assert len(scores) == size
    assert not selection.scores.requires_grad
    assert torch.finfo(selection.scores.dtype).bits >= 32
    assert all(score == -math.inf or math.isfinite(score) for score in scores)
    finite = [i for i in range(size) if scores[i] > -math.inf]
    assert selection.num_non_finite == size - len(finite)
    for i in range(size):
        losses, logits = _numbers_of(selector, given, i)
        if any(not abs(loss) <= FLOAT32_MAX for loss in losses) or any(not logit < math.inf for logit in logits):
            assert scores[i] == -math.inf, f"point {i} is broken and has the score {scores[i]}"
        if all(abs(value) < 1e30 for value in losses + logits):
            assert math.isfinite(scores[i]), f"point {i} is whole and has no score"
    positions = selection.positions.tolist()
    assert len(positions) == len(set(positions)) == min(num_selected, len(finite))
    assert set(positions) <= set(finite)
    check_order(selector, scores, positions, finite)
    check_scores(selector, given, scores)
    check_payoff(selector, given, selection, positions)


def _numbers_of(selector, given, i):
    """The losses that must be finite of point i, and its logits, of which only minus infinity has a meaning."""
    found = {"losses": [], "logits": []}
    for name in sorted((selector.needs | {"model_loss"}) & given.keys() - {"targets", "groups"}):
        tensor = given[name][..., i, :] if name == "logits" else given[name][i]
        if name == "group_irreducible_loss" and selector.name == "fixed_weights":
            tensor = tensor[selector.weighted_groups]
        found["logits" if name == "logits" else "losses"] += tensor.detach().double().flatten().tolist()
    return found["losses"], found["logits"]


def check_order(selector, scores, positions, finite):
    sampler = selector.sampler
    is_uniform = hasattr(sampler, "uniform_from") and int(selector.epoch) < sampler.uniform_until
    inner = type(getattr(sampler, "sampler", sampler)).__name__
    if is_uniform:
        return
    if inner == "TopK":
        assert positions == sorted(finite, key=lambda i: (-scores[i], i))[: len(positions)]
    if inner == "Power" and getattr(sampler, "sampler", sampler).beta > 0:
        is_positive = [scores[i] > 0 for i in positions]
        assert is_positive == sorted(is_positive, reverse=True), "a point of probability zero came before others"


def check_scores(selector, given, scores):
    lists = {name: tensor.detach().double().tolist() for name, tensor in given.items() if name in selector.needs}
    for i, score in enumerate(scores):
        if score == -math.inf:
            continue
        found = reference_score(selector, lists, i)
        if found is not None:
            expected, scale = found
            assert close(score, expected, scale), f"{selector.name}: point {i} has the score {score}, not {expected}"


def reference_score(selector, lists, i):
    """The score of a point in Python's floats, and the size of the numbers it was made of; None where that is dear."""
    model_loss = lists["model_loss"][i] if "model_loss" in lists else 0.0
    if selector.name == "train_loss":
        return model_loss, 0.0
    if selector.name in ("irreducible_loss", "rho_loss"):
        irreducible_loss = lists["irreducible_loss"][i]
        return model_loss - irreducible_loss, max(abs(model_loss), abs(irreducible_loss))
    if selector.name in ("reducr", "fixed_weights"):
        weights = selector.group_weights.tolist()
        row = lists["group_irreducible_loss"][i] if "group_irreducible_loss" in lists else [0.0] * len(weights)
        options = ReferenceOptions(0.0, clip=selector.clip)
        used = [(w, excess_of(model_loss, r, options)) for w, r in zip(weights, row, strict=True) if w > 0]
        sizes = [w * max(abs(model_loss), abs(r)) for w, r in zip(weights, row, strict=True) if w > 0]
        return sum(w * excess for w, excess in used), sum(sizes)
    if selector.name == "payoff":
        row, holdout = lists["group_irreducible_loss"][i], selector.group_holdout_loss.tolist()
        return reference_scores.max_min_payoff(model_loss, row, holdout), max(map(abs, [model_loss, *row, *holdout]))
    if selector.name in ("gradient_norm", "entropy", "conditional_entropy", "bald"):
        return _uncertainty(selector, lists, i)
    return None


def _uncertainty(selector, lists, i):
    logits = lists["logits"]
    samples = [sample[i] for sample in logits] if isinstance(logits[0][0], list) else [logits[i]]
    if any(abs(value) > 500 for sample in samples for value in sample):
        return None
    if selector.name == "gradient_norm":
        assert 0 <= lists["targets"][i] < len(samples[0]), "a target out of range was scored"
        return reference_scores.gradient_norm(samples[0], int(lists["targets"][i])), 1.0
    rule = {"entropy": "predictive_entropy", "bald": "mutual_information"}.get(selector.name, selector.name)
    return getattr(reference_scores, rule)(samples), 1.0


def check_group_means(given, payoff, positions):
    losses, groups = given["model_loss"].double().tolist(), given["groups"].long().tolist()
    for g, value in enumerate(payoff):
        own = [losses[i] for i in positions if groups[i] == g]
        assert close(value, -sum(own) / max(len(own), 1), max(map(abs, own), default=0.0))


def check_payoff(selector, given, selection, positions):
    payoff = selection.payoff.tolist()
    assert len(payoff) == selector.num_groups
    assert all(math.isfinite(value) for value in payoff)
    if selector.name == "group_dro":
        check_group_means(given, payoff, positions)
        return
    if selector.name == "priority_sampling":
        assert payoff == [-len(positions) * loss for loss in selector.group_holdout_loss.tolist()]
        return
    if selector.name != "reducr":
        assert payoff == [0.0] * len(payoff)
        return
    lists = {name: tensor.detach().double().tolist() for name, tensor in given.items() if name in selector.needs}
    options = ReferenceOptions(0.0, clip=selector.clip)
    holdout = selector.group_holdout_loss.tolist() if selector.needs_group_holdout_loss else [0.0] * len(payoff)
    times = len(positions) if selector.holdout_weighting == "per_point" else 1
    for c, value in enumerate(payoff):
        expected, scale = -times * holdout[c], abs(times * holdout[c])
        for i in positions:
            model_loss = lists["model_loss"][i] if "model_loss" in lists else 0.0
            irreducible_loss = lists["group_irreducible_loss"][i][c] if "group_irreducible_loss" in lists else 0.0
            expected += excess_of(model_loss, irreducible_loss, options)
            scale += max(abs(model_loss), abs(irreducible_loss))
        assert close(value, expected, scale), f"group {c} has the payoff {value}, not {expected}"
    weights = selector.group_weights.tolist()
    if max(map(abs, selector.cumulative_payoff.tolist())) * selector.weighting.step_size < 600:
        expected = weights_of(selector.cumulative_payoff.tolist(), selector.weighting.step_size)
        for weight, wanted in zip(weights, expected, strict=True):
            assert math.isclose(weight, wanted, rel_tol=1e-9, abs_tol=1e-250)


# batches of any structure


class Named(NamedTuple):
    first: Any
    second: Any


@dataclass
class Sample:
    input: Any
    label: Any


def shared_entries():
    return st.sampled_from([None, "text", 3, 0.5, True, torch.tensor(1.0), np.float32(2.0)])


@st.composite
def entries(draw, size, depth=2):
    """An entry of a batch of ``size`` points; one in many is of another length or kind."""
    length = draw(values.mostly(st.just(size), st.integers(0, 6), one_in=12))
    leaf = st.one_of(
        values.floats((length, *draw(st.sampled_from([(), (2,), (1, 3)])))),
        values.integers((length,), 3),
        st.just(np.arange(length)),
        st.just([f"text {i}" for i in range(length)]),
        st.just(tuple(range(length))),
        shared_entries(),
    )
    if depth == 0 or draw(st.integers(0, 2)):
        return draw(values.mostly(leaf, st.one_of(values.any_tensor(), values.odd_values, st.just({1, 2})), one_in=30))
    inner = [draw(entries(size, depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    kind = draw(st.sampled_from(["list", "tuple", "dict", "named", "dataclass"]))
    if kind in ("list", "tuple"):
        return inner if kind == "list" else tuple(inner)
    if kind == "dict":
        return dict(zip("abc", inner, strict=False))
    return Named(inner[0], inner[-1]) if kind == "named" else Sample(inner[0], inner[-1])


@st.composite
def structures(draw):
    size = draw(st.integers(1, 5))
    positions = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    return draw(entries(size)), size, positions


def check_structure(case):
    batch, size, positions = case
    before = repr(batch)
    with refusing():
        selected = index_batch(batch, torch.tensor(positions), num_examples=size)
    assert repr(batch) == before
    assert_taken(batch, selected, size, positions)


def assert_taken(value, selected, size, positions):
    """Rows of tensors and arrays are those at the positions; everything keeps its type."""
    if isinstance(value, torch.Tensor) and value.ndim:
        assert torch.equal(bits(selected), bits(value[positions]))
    elif isinstance(value, np.ndarray) and value.ndim:
        assert selected.tolist() == [value[i].tolist() for i in positions]
    elif isinstance(value, list | tuple | dict | Sample):
        assert type(selected) is type(value)
        is_list = isinstance(value, list | tuple) and not isinstance(value, Named)
        if is_list and len(value) == size and _is_of_points(value, selected, positions):
            return
        parts, taken_parts = _parts(value), _parts(selected)
        assert list(parts) == list(taken_parts)
        for key, part in parts.items():
            assert_taken(part, taken_parts[key], size, positions)
    else:
        assert selected is value


def _parts(value):
    if isinstance(value, Sample):
        return vars(value)
    return value if isinstance(value, dict) else dict(enumerate(value))


def _is_of_points(value, selected, positions):
    """Whether ``selected`` are the entries of a list of one entry for each point."""
    return len(selected) == len(positions) and all(
        entry is value[i] for entry, i in zip(selected, positions, strict=True)
    )


# specs of batches

KEYS = ("input", "x", "target", "label", "labels", "index", "idx", "group", "a", "b")
spec_entries = st.one_of(
    st.sampled_from([*KEYS, 0, 1, 2, 3, -1, 7]),
    st.lists(st.sampled_from([*KEYS, 0, 1]), max_size=3).map(tuple),
    st.sampled_from([None, 1.5, "real", "shape", (), ((),), True, object()]),
)
ENTRIES = {
    "target": ("target", "label", "labels"),
    "input": ("input", "x"),
    "index": ("index", "idx"),
    "group": ("group",),
}


@st.composite
def batches_with_specs(draw):
    size = draw(st.integers(0, 5))
    part = values.mostly(st.one_of(values.integers((size,), 3), values.floats((size, 2))), entries(size, 1))
    kind = draw(st.sampled_from(["usual", "usual", "usual", "tuple", "list", "dict", "named", "dataclass", "other"]))
    if kind == "usual":
        names = {"target", *draw(st.sets(st.sampled_from(sorted(ENTRIES))))}
        keys = {name: draw(st.sampled_from(ENTRIES[name])) for name in names}
        batch = {key: draw(values.integers((size,), 3)) for key in keys.values()} | {"a": draw(part)}
        return batch, draw(st.none() | st.just(keys))
    if kind == "dict":
        batch = draw(st.dictionaries(st.sampled_from(KEYS), part, max_size=5))
    elif kind == "other":
        batch = draw(st.one_of(values.any_tensor(), values.odd_values))
    else:
        parts = draw(st.lists(part, min_size=2, max_size=4))
        kinds = {"tuple": tuple, "list": list, "named": lambda p: Named(*p[:2]), "dataclass": lambda p: Sample(*p[:2])}
        batch = kinds[kind](parts)
    options = {"target": draw(spec_entries)}
    options |= {name: draw(spec_entries) for name in draw(st.sets(st.sampled_from(["input", "index", "group"])))}
    return batch, draw(st.none() | st.just(options))


def check_spec(case):
    batch, options = case
    with refusing():
        spec = BatchSpec.of(batch) if options is None else BatchSpec(**options)
        read = spec.read(batch)
    size = len(read.target)
    assert isinstance(read.target, torch.Tensor)
    assert read.index is None or read.index.shape == (size,)
    assert read.group is read.target if spec.group is None else read.group.shape == (size,)
    for name in ("target", "index", "group", "input"):
        entry = getattr(spec, name)
        if entry is None:
            continue
        value = batch
        for key in entry if isinstance(entry, tuple) else (entry,):
            value = value[key] if isinstance(value, dict) or isinstance(key, int) else getattr(value, key)
        assert getattr(read, name) is value or repr(getattr(read, name)) == repr(value)
    if spec.input is None:
        others = (spec.target, spec.index, spec.group)
        assert read.input == {k: v for k, v in batch.items() if k not in others and isinstance(v, torch.Tensor)}


# holdout losses


@st.composite
def holdout_updates(draw):
    num_groups = draw(values.mostly(st.integers(1, 4), values.anything, one_in=20))
    stop = num_groups if type(num_groups) is int and 0 < num_groups < 5 else 2
    acts = [("update", torch.ones(stop), torch.arange(stop))] if draw(st.integers(0, 3)) else []
    specials = draw(st.sampled_from([(), (), values.SPECIAL]))
    for _ in range(draw(st.integers(0, 5))):
        size = draw(st.integers(0, 6))
        loss = draw(values.mostly(values.floats((size,), specials=specials), values.any_tensor(), one_in=15))
        groups = draw(values.mostly(values.integers((size,), stop), values.any_tensor(), one_in=15))
        acts.append((draw(st.sampled_from(["update", "update", "update", "rescale"])), loss, groups))
    decay = draw(values.mostly(st.sampled_from([1.0, 0.5, 0.99, 1e-300]), values.anything, one_in=10))
    return num_groups, decay, acts


def check_holdout(case):
    num_groups, decay, acts = case
    with refusing():
        holdout = GroupHoldoutLoss(num_groups, decay=decay)
    sums, counts = [0.0] * num_groups, [0.0] * num_groups
    is_refused = False
    for act, loss, groups in acts:
        before = copy.deepcopy(holdout.state_dict())
        try:
            with refusing():
                holdout.update(loss, groups) if act == "update" else holdout.rescale(6)
        except RefusedError:
            is_refused = True
            assert same_state(holdout.state_dict(), before)
            continue
        if act == "rescale":
            factor = 6 / sum(counts)
            sums, counts = ([value * factor for value in one] for one in (sums, counts))
            continue
        forgotten = [1.0 if count < 1e-200 else float(decay) for count in counts]
        sums = [value * by for value, by in zip(sums, forgotten, strict=True)]
        counts = [value * by for value, by in zip(counts, forgotten, strict=True)]
        for value, group in zip(loss.detach().double().tolist(), groups.tolist(), strict=True):
            assert 0 <= group < num_groups, "a group out of range was counted"
            sums[group] += value
            counts[group] += 1
    with refusing():
        means = holdout.compute().tolist()
    for mean, total, count in zip(means, sums, counts, strict=True):
        assert math.isclose(mean, total / count, rel_tol=1e-9, abs_tol=1e-9 * max(map(abs, [1e-290, *_sizes(acts)])))
    if is_refused:
        raise RefusedError


def _sizes(acts):
    losses = [loss.detach().double().flatten().tolist() for _, loss, _ in acts if loss.is_floating_point()]
    return [loss for batch in losses for loss in batch if math.isfinite(loss)]


# tables and irreducible losses


@st.composite
def tables(draw):
    kind = draw(values.mostly(st.sampled_from(sorted(KINDS)), st.sampled_from(["losses", "", None, 3]), one_in=12))
    axes = {"loss": 1, "group_loss": 2, "logits": 2, "joint_logits": 3}.get(kind, 2)
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=axes, max_size=axes)))
    array = draw(values.floats(shape, dtypes=values.FLOATS[:3])).detach().numpy()
    wrong = st.one_of(
        values.any_tensor(), values.odd_values, st.just(np.zeros(shape, int)), st.just(np.zeros(shape, complex))
    )
    index = draw(values.mostly(values.integers((draw(st.integers(0, 6)),), shape[0]), st.none() | values.any_tensor()))
    return draw(values.mostly(st.just(array), wrong, one_in=12)), kind, index


def check_table(case):
    array, kind, index = case
    with refusing():
        table = IrreducibleTable(array, kind=kind)
    with refusing():
        rows = table.rows(index)
    assert rows.shape == (len(index), *array.shape[1:])
    for row, i in zip(rows, index.tolist(), strict=True):
        assert 0 <= i < len(array), "an index out of range was looked up"
        assert torch.equal(bits(row), bits(torch.from_numpy(array[i : i + 1])[0]))
    batch = Batch(index, None, torch.zeros(len(index), dtype=torch.int64), None)
    with refusing():
        (TableLoss(table).lookup if "loss" in kind else TableLogits(table).logits)(batch)


@st.composite
def lookups(draw):
    size, num_classes, num_groups = draw(st.integers(0, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["plain", "adjusted", "grouped", "joint"]))
    shape = (size, num_classes, num_groups) if kind == "joint" else (size, num_classes)
    logits = draw(values.floats(shape, specials=(0.0, 1e4, -1e4, values.NAN)))
    targets = draw(values.mostly(values.integers((size,), num_classes), values.any_tensor(), one_in=15))
    groups = torch.randint(0, num_groups, (num_classes,), generator=values.seeded(draw(values.seeds)))
    groups = draw(values.mostly(st.just(groups), values.any_tensor(), one_in=10)) if kind == "grouped" else None
    weight = draw(values.mostly(st.sampled_from([1.0, 10.0, 1e6]), values.anything, one_in=10))
    return kind, logits, targets, groups, weight


class Given:
    def __init__(self, logits):
        self.given = logits

    def logits(self, batch):
        return self.given


def check_lookup(case):
    kind, logits, targets, groups, weight = case
    source, size = Given(logits), len(logits)
    with refusing():
        if kind == "plain":
            irreducible = PlainIrreducibleLoss(source)
        else:
            irreducible = AdjustedIrreducibleLoss(source, gradient_weight=weight, group_of_target=groups)
    with refusing(), torch.no_grad():
        losses = irreducible.lookup(Batch(None, None, targets, None))
    assert len(losses) == size
    rows, dtype = logits.detach().double().tolist(), losses.dtype
    assert dtype in (torch.float32, torch.float64)
    for i, target in enumerate(targets.tolist()):
        assert 0 <= target < logits.shape[1], "a target out of range was looked up"
        flat = logits[i].detach().double().flatten().tolist()
        if any(not abs(value) <= 30 for value in flat):  # where Python's floats would overflow or vanish
            continue
        if kind == "plain":
            expected = [reference_scores.cross_entropy(rows[i], target)]
        elif kind == "joint":
            expected = reference_scores.adjusted_joint_losses(rows[i], target, gradient_weight=weight)
        else:
            of_target = list(range(len(flat))) if groups is None else groups.tolist()
            expected = reference_scores.adjusted_losses(
                rows[i], target, gradient_weight=weight, group_of_target=of_target, num_groups=max(of_target) + 1
            )
        found = losses[i].flatten().tolist()
        assert len(found) == len(expected)
        assert all(close(one, other, 100.0) for one, other in zip(found, expected, strict=True)), (found, expected)


# the loader


class Identity(nn.Module):
    """A model whose logits are its input."""

    def forward(self, logits):
        return logits


LOSSES = {
    "mean": lambda output, target: output.mean(),
    "points": lambda output, target: output.logsumexp(dim=1) - output[:, 0],
    "squares": lambda output, target: output.square(),
    "text": lambda output, target: "loss",
}


@st.composite
def loaders(draw):
    num_classes = draw(st.integers(2, 3))
    kind = draw(st.sampled_from(["pair", "indexed", "grouped", "dict", "mixed"]))
    batches = []
    for number in range(draw(st.integers(0, 4))):
        size = draw(values.mostly(st.integers(1, 8), st.just(0), one_in=30))
        inputs = draw(values.floats((size, num_classes), specials=(values.NAN, values.INF, 0.0, 1e4)))
        targets = draw(values.mostly(values.integers((size,), num_classes, one_in=60), values.any_tensor(), one_in=60))
        index = torch.arange(size) + 100 * number
        groups = draw(values.mostly(values.integers((size,), num_classes, one_in=60), values.any_tensor(), one_in=60))
        batches.append(
            _batch(("pair", "dict")[number % 2] if kind == "mixed" else kind, index, inputs, targets, groups)
        )
    name = draw(
        st.sampled_from(["train_loss", "uniform", "class_balanced", "gradient_norm", "entropy", "rho_loss", "reducr"])
    )
    options = {
        "fraction": draw(values.mostly(st.sampled_from([0.1, 0.3, 0.5, 1.0]), values.anything, one_in=15)),
        "accumulate_steps": draw(values.mostly(st.integers(1, 3), values.anything, one_in=20)),
        "seed": draw(st.integers(0, 5)),
    }
    scoring = options["scoring"] = {
        "mode": draw(st.sampled_from(["train", "eval", "train_frozen_statistics"])),
        "autocast": draw(values.mostly(st.none() | st.just(torch.bfloat16), values.anything, one_in=20)),
        "batch_size": draw(values.mostly(st.none() | st.integers(1, 4), values.anything, one_in=20)),
    }
    if draw(st.integers(0, 3)) == 0:
        scoring["budget"] = draw(values.mostly(st.sampled_from([0.1, 0.4, 1.0]), values.anything, one_in=15))
    if draw(st.integers(0, 9)) == 0:
        options["loss"] = LOSSES[draw(st.sampled_from(sorted(LOSSES)))]
    if draw(st.integers(0, 5)) == 0:
        options["holdout"] = [draw(st.sampled_from(batches))] if batches else []
        options["refresh_steps"] = draw(st.sampled_from([None, 1, 2, 0]))
    return name, num_classes, batches, options, draw(st.integers(0, 5))


def _batch(kind, index, inputs, targets, groups):
    return {
        "pair": (inputs, targets),
        "indexed": [index, inputs, targets],
        "grouped": (index, inputs, targets, groups),
        "dict": {"input": inputs, "label": targets, "idx": index, "text": [f"point {i}" for i in index.tolist()]},
    }[kind]


def _loader(name, num_classes, batches, options):
    class Half:
        """Irreducible losses of half a nat, for every group."""

        def lookup(self, batch):
            size = len(batch.target)
            return torch.full((size,) if name == "rho_loss" else (size, num_classes), 0.5)

    selector_options = {} if name in ("uniform", "class_balanced") else {"sampler": "top_k"}
    selector_options |= {"step_size": 1.0} if name == "reducr" else {}
    selector = reducr.make_selector(name, num_groups=num_classes, **selector_options)
    if name == "reducr" and "holdout" not in options:
        selector.set_group_holdout_loss(torch.ones(num_classes))
    options = options | {"scoring": Scoring(**options["scoring"])}
    return reducr.SelectiveLoader(batches, Identity(), selector, Half(), short_batches="keep", **options)


def check_loader(case):
    name, num_classes, batches, options, after = case
    with refusing():
        loader = _loader(name, num_classes, batches, options)
    picked, state, number = [], None, 0
    passed = iter(loader)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* candidates have a NaN or infinite loss", RuntimeWarning)
        warnings.filterwarnings("ignore", "A pass ended after .* without a refresh", UserWarning)
        while True:
            with refusing():
                batch = next(passed, None)
            if batch is None:
                break
            check_selected(loader, batches[number], batch)
            picked.append(repr(batch))
            number += 1
            if number == after:
                with refusing():
                    state = copy.deepcopy(loader.state_dict())
    assert number == len(batches)
    report = loader.report()
    assert report.num_batches == len(batches)
    assert report.num_steps == (-(-len(batches) // options["accumulate_steps"]))
    assert sum(report.group_counts) == report.num_selected
    assert_simplex(loader.downsampler.selector)
    if state is not None:
        again = _loader(name, num_classes, batches, options)
        again.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [repr(batch) for batch in again] == picked[after:]
        assert (again.report().num_steps, again.report().group_counts) == (report.num_steps, report.group_counts)
        assert same_state(again.downsampler.selector.state_dict(), loader.downsampler.selector.state_dict())


def check_selected(loader, batch, selected):
    """The best points by the float reference, each with all that belongs to it."""
    downsampler = loader.downsampler
    assert type(selected) is type(batch)
    inputs, targets = (batch[key] for key in (("input", "label") if isinstance(batch, dict) else _places(batch)))
    size = len(targets)
    selection: Selection = downsampler.selection
    positions = selection.positions.tolist()
    assert all(0 <= target < loader.downsampler.selector.num_groups for target in downsampler.selected.group.tolist())
    assert_taken(batch, selected, size, positions)
    finite = [i for i in range(size) if float(selection.scores[i]) > -math.inf]
    assert len(positions) == min(num_selected_of(downsampler.fraction, size), len(finite))
    if downsampler.selector.name == "train_loss" and downsampler.loss is None:
        for i in finite:
            row = inputs[i].detach().double().tolist()
            if all(abs(value) <= 30 for value in row):
                expected = reference_scores.cross_entropy(row, int(targets[i]))
                assert close(float(selection.scores[i]), expected, 60.0)
        assert positions == sorted(finite, key=lambda i: (-float(selection.scores[i]), i))[: len(positions)]


def _places(batch):
    return (0, 1) if len(batch) == 2 else (1, 2)


# checkpoints

plain_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4), st.binary(max_size=4),
        values.floats((2, 2)), values.integers((3,), 5), values.any_tensor(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip
unreadable = st.sampled_from([np.ones(2), np.float64(1.0), object, range(3), slice(1), Sample(1, 2), frozenset({1})])


class Part:
    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@st.composite
def checkpoint_sequences(draw):
    acts = []
    for _ in range(draw(st.integers(1, 4))):
        state = draw(values.mostly(plain_values, unreadable, one_in=10))
        step = draw(values.mostly(st.integers(0, 30), values.anything, one_in=15))
        damage = draw(values.mostly(st.none(), st.sampled_from(["cut", "flip", "empty", "rename"]), one_in=4))
        acts.append((step, state, damage))
    return draw(st.sampled_from([2, 3])), acts


def check_checkpoints(case):
    keep, acts = case
    is_refused = False
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for step, state, damage in acts:
            checkpoints = Checkpoints(folder, keep=keep)
            try:
                with refusing():
                    path = checkpoints.save(step, part=Part(state))
            except RefusedError:
                is_refused = True
                continue
            before = sorted((old for old in whole if old < step), reverse=True)
            present = {int(one.name.split("_")[1]) for one in checkpoints.paths()}
            whole = {old: whole[old] for old in before if old in present} | {step: state}
            assert len(present) <= keep
            assert path.exists()
            if damage:
                _damage(path, damage)
                del whole[step]
            check_resume(folder, whole)
    if is_refused:
        raise RefusedError


def check_resume(folder, whole):
    part = Part("nothing loaded")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "checkpoint .* is damaged", RuntimeWarning)
        try:
            step = Checkpoints(folder).resume(part=part)
        except ValueError:
            assert not whole
            return
    if not whole:
        assert step == 0
        return
    assert step == max(whole)
    assert_same(part.state, whole[step])


def _damage(path: Path, damage):
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        place = len(data) // 3
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.rename(path.with_name(f"step_000000099_{path.name.split('_')[2]}"))


def assert_same(one, other):
    """Equal, and of the same types, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.layout) == (other.dtype, other.shape, other.layout)
        one, other = (tensor.detach().to_dense() for tensor in (one, other))
        assert torch.equal(bits(one), bits(other))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert repr(one) == repr(other)  # NaN among them


TARGETS = {
    # name: inputs, what is checked of one, share of the cases
    "make_selector": (made_selectors(), check_made_selector, 15),
    "candidates": (any_fields(), check_candidates, 10),
    "select_and_update": (sequences(), check_sequence, 25),
    "structures": (structures(), check_structure, 10),
    "batch_spec": (batches_with_specs(), check_spec, 10),
    "holdout_loss": (holdout_updates(), check_holdout, 8),
    "tables": (tables(), check_table, 8),
    "irreducible_losses": (lookups(), check_lookup, 6),
    "selective_loader": (loaders(), check_loader, 10),
    "checkpoints": (checkpoint_sequences(), check_checkpoints, 3),
}
