"""Selection from a stream of shards on disk that is read once: one pass, no length, no index.

    pip install '.[train]'
    python examples/stream.py

Takes seconds.
"""

import tempfile
from pathlib import Path

import torch
from noisy_digits import NUM_CLASSES, accuracies, make_data, make_model, make_reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.streaming import ShardedStream

NUM_SHARDS = 40  # the data over and over, as from a crawler that meets the same pages again


def read(path):
    """Yield the samples of a shard."""
    inputs, labels = torch.load(path, weights_only=True)
    yield from zip(inputs, labels, strict=True)


noisy, clean, test = make_data()
reference = make_reference(*clean)
print(f"reference  {accuracies(reference, *test)}")
irreducible = reducr.Reference(reference)
with tempfile.TemporaryDirectory() as folder:
    shards = [Path(folder) / f"{number:02d}.pt" for number in range(NUM_SHARDS)]
    for shard in shards:
        order = torch.randperm(len(noisy[0]))
        torch.save([part[order] for part in noisy], shard)
    for name, options in {"uniform": {}, "reducr": {"step_size": 1e-3}}.items():
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        loader = reducr.SelectiveLoader(
            DataLoader(ShardedStream(shards, read, shuffle_shards=True), batch_size=100),
            model,
            reducr.make_selector(name, num_groups=NUM_CLASSES, **options),
            irreducible,
            fraction=0.1,
            holdout=DataLoader(TensorDataset(*clean), batch_size=100),
        )
        for inputs, labels in loader:  # one pass: the holdout loss is refreshed by steps
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"{name:10} {accuracies(model, *test)}")
print(loader.report())
