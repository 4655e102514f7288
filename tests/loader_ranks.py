"""What loops with ``SelectiveLoader`` do on several processes; see ``tests/ranks.py``."""

import warnings

import torch
from torch import nn

import reducr
from ranks import run_program
from reducr._internal.distributed import rank


def batches_of(sizes):
    generator = torch.Generator().manual_seed(rank())
    return [(torch.randn(size, 4, generator=generator), torch.arange(size) % 3) for size in sizes]


def make_loader(sizes, rule="train_loss", mode="global", **options):
    torch.manual_seed(0)
    return reducr.SelectiveLoader(batches_of(sizes), nn.Linear(4, 3), rule, distributed=mode, **options)


def error_of(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def train(loader):
    """Sizes of the batches of this rank, as a loop that weights its loss gets them; what was told; and the report."""
    sizes = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for inputs, targets in loader:
            (nn.functional.cross_entropy(loader.model(inputs), targets) * loader.loss_weight).backward()
            sizes.append(len(targets))
    report = loader.report()
    return sizes, [str(warning.message) for warning in told], (report.num_steps, report.num_skipped)


def everything():
    own = [3, 2][rank()]
    groups = [(torch.randn(6, 4), torch.arange(6) % [2, 3][rank()])]
    return {
        "fewer": error_of(lambda: train(make_loader([20] * own))),
        "unweighted": error_of(lambda: list(make_loader([20] * 3))),
        "equal": error_of(lambda: list(make_loader([20] * 3, mode="local"))),
        # rank 0 could go on with its batch of 20
        "short": train(make_loader([20, 20, [20, 5][rank()]], mode="local")),
        "groups": make_loader([20], "class_balanced", holdout=groups).downsampler.selector.num_groups,
        "counted apart": error_of(
            lambda: next(iter(make_loader([20], "class_balanced", holdout=groups, num_groups=2 + rank())))
        ),
    }


if __name__ == "__main__":
    run_program({"everything": everything})
