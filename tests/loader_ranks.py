"""What loops with ``SelectiveLoader`` do on several processes; see ``tests/ranks.py``."""

import contextlib
import io
import warnings
from unittest import mock

import torch
from torch import nn

import reducr
from ranks import run_program
from reducr._internal.distributed import rank
from reducr.batch import Batch
from reducr.downsampler import Downsampler
from reducr.scoring.lockstep import Lockstep


def batches_of(sizes):
    generator = torch.Generator().manual_seed(rank())
    return [(torch.randn(size, 4, generator=generator), torch.arange(size) % 3) for size in sizes]


def make_loader(sizes, rule="train_loss", mode="global", model=None, **options):
    torch.manual_seed(0)
    return reducr.SelectiveLoader(batches_of(sizes), model or nn.Linear(4, 3), rule, distributed=mode, **options)


def error_of(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def train(loader, *, num_steps=None):
    """Sizes of the batches of this rank, as a loop that weights its loss gets them; what was told; and the report."""
    sizes = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for inputs, targets in loader:
            (nn.functional.cross_entropy(loader.model(inputs), targets) * loader.loss_weight).backward()
            sizes.append(len(targets))
            if len(sizes) == num_steps:
                break
    report = loader.report()
    return sizes, [str(warning.message) for warning in told], (report.num_steps, report.num_skipped)


def short(**options):
    """Two batches of 20, and one of which rank 0 could read on: 20 here, 5 on the other rank."""
    return make_loader([20, 20, [20, 5][rank()]], **options)


def plain_loop(*, num_batches):
    """``reducr.train`` over batches of this rank."""
    batches = [Batch(None, inputs, targets, targets) for inputs, targets in batches_of([20] * num_batches)]
    core, model = Downsampler("train_loss", fraction=0.1, distributed="local"), nn.Linear(4, 3)
    reducr.train(model, batches, core, torch.optim.SGD(model.parameters(), lr=0.1), num_steps=2 * num_batches)


def leave(*, num_steps):
    """Leave a pass after some steps, and begin another."""
    loader = make_loader([20] * 3, accumulate_steps=2, mode="local")
    train(loader, num_steps=num_steps)
    train(loader)


def num_exchanges():
    """Of a pass over three batches, the last of which is skipped."""
    with mock.patch.object(Lockstep, "_exchange", autospec=True, side_effect=Lockstep._exchange) as exchange:
        train(short(mode="local"))
    return exchange.call_count


def resume_apart():
    """Rank 0 resumes after two steps, and rank 1 from the start."""
    holdout = [(torch.randn(6, 4), torch.arange(6) % 3)]
    options = {"rule": "reducr", "irreducible": reducr.Reference(nn.Linear(4, 3)), "holdout": holdout}
    loader = make_loader([20] * 3, **options)
    states = [loader.state_dict()]
    train(loader, num_steps=2)
    states.append(loader.state_dict())
    again = make_loader([20] * 3, **options)
    again.load_state_dict(states[1 - rank()])
    train(again)


def fit_reference():
    """What a short training on random labels writes to stderr, and how many warnings it gives."""
    with contextlib.redirect_stderr(io.StringIO()) as written, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reducr.fit_reference(nn.Linear(4, 3), [(torch.randn(12, 4), torch.arange(12) % 3)], num_epochs=1, progress=True)
    return written.getvalue(), len(told)


def everything():
    groups = [(torch.randn(6, 4), torch.arange(6) % [2, 3][rank()])]
    differing = {
        "fraction": {"fraction": [0.1, 0.2][rank()]},
        "rule": {"rule": ["train_loss", "uniform"][rank()]},
        "step_size": {"rule": "reducr", "step_size": [0.1, 0.2][rank()], "num_groups": 3, "irreducible": Zero()},
        "temperature": {"sampler": "softmax", "temperature": [1.0, 2.0][rank()]},
        "distributed": {"mode": ["global", "local"][rank()]},
    }
    return {
        "fewer": error_of(lambda: train(make_loader([20] * [3, 2][rank()]))),
        "fewer in a plain loop": error_of(lambda: plain_loop(num_batches=[3, 2][rank()])),
        "left": error_of(lambda: leave(num_steps=[3, 1][rank()])),
        "unweighted": error_of(lambda: list(make_loader([20] * 3))),
        "equal": error_of(lambda: list(make_loader([20] * 3, mode="local"))),
        "short": train(short(mode="local")),
        "short together": train(make_loader([20, 20, 5])),
        "kept": train(short(mode="local", short_batches="keep")),
        "refused": error_of(lambda: train(short(mode="local", short_batches="error"))),
        "lengths": {mode: len(make_loader([20, 20, 10], mode=mode, fraction=0.1)) for mode in ("global", "local")},
        "exchanges": num_exchanges(),
        "checkpoint": error_of(resume_apart),
        "reference": fit_reference(),
        "groups": make_loader([20], "class_balanced", holdout=groups).downsampler.selector.num_groups,
        "counted apart": error_of(
            lambda: next(iter(make_loader([20], "class_balanced", holdout=groups, num_groups=2 + rank())))
        ),
        "options": {name: error_of(lambda o=o: train(make_loader([20], **o))) for name, o in differing.items()},
    }


class Zero:
    """No irreducible loss."""

    def lookup(self, batch):
        return torch.zeros(len(batch.target), 3)


if __name__ == "__main__":
    run_program({"everything": everything})
