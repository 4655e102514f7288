"""Priority sampling in a plain PyTorch loop: class quotas that adapt to the holdout loss, without a scoring pass.

    pip install '.[train]'
    python examples/priority_sampling.py

Takes seconds. Each step trains on a tenth of 100 candidates; in the last two rows a quarter of it are clean examples of
the holdout set. The last row starts from the parameters of the reference model.
"""

import torch
from noisy_digits import accuracies, make_data, make_model, make_reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.irreducible import LiveLogits, PlainIrreducibleLoss

noisy, clean, test = make_data()
reference = make_reference(*clean)
print(f"reference               {accuracies(reference, *test)}")

ROWS = {
    "class_balanced": {},
    "priority_sampling": {"step_size": 3e-3},
    "with holdout examples": {"step_size": 3e-3, "holdout_fraction": 0.25},
    "and a warm start": {"step_size": 3e-3, "holdout_fraction": 0.25},
}
for row, options in ROWS.items():
    model = make_model()
    if row == "and a warm start":
        model.load_state_dict(reference.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = reducr.SelectiveLoader(
        DataLoader(TensorDataset(*noisy), batch_size=100, shuffle=True),
        model,
        row if row == "class_balanced" else "priority_sampling",  # the classes are counted from the holdout set
        PlainIrreducibleLoss(LiveLogits(reference)),
        fraction=0.1,
        holdout=DataLoader(TensorDataset(*clean), batch_size=100),
        **options,
    )
    for _ in range(40):
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"{row:23} {accuracies(model, *test)}")
print(loader.report())
