"""Selection in a plain PyTorch loop: train on a tenth of every batch, selected uniformly or by REDUCR.

    pip install '.[train]'
    python examples/plain.py

Takes seconds.
"""

import torch
from noisy_digits import NUM_CLASSES, accuracies, make_data, make_model, make_reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr

noisy, clean, test = make_data()
reference = make_reference(*clean)
print(f"reference  {accuracies(reference, *test)}")

for name, options in {"uniform": {}, "reducr": {"step_size": 1e-3}}.items():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = reducr.SelectiveLoader(
        DataLoader(TensorDataset(*noisy), batch_size=100, shuffle=True),
        model,
        reducr.make_selector(name, num_groups=NUM_CLASSES, **options),
        reducr.Reference(reference),
        fraction=0.1,
        holdout=DataLoader(TensorDataset(*clean), batch_size=100),
        refresh_steps=20,
    )
    for _ in range(40):
        for inputs, labels in loader:  # as in any loop; each batch holds the 10 of 100 examples selected
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"{name:10} {accuracies(model, *test)}")
print(loader.report())
