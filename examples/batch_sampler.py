"""Select before loading: of the image files of noisy digits, only those that are trained on are decoded.

    pip install '.[train,vision]'
    python examples/batch_sampler.py

Takes seconds. In the last row a quarter of each batch are clean examples of the holdout set.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from noisy_digits import NUM_CLASSES, accuracies, make_data, make_model, make_reference
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import reducr


class Scans(Dataset):
    """PNG files, decoded when they are read, with labels that are known beforehand."""

    def __init__(self, folder, inputs, targets):
        self.folder, self.targets, self.num_decoded = Path(folder), targets, 0
        for number, pixels in enumerate((inputs * 255).byte().numpy()):
            Image.fromarray(pixels.reshape(8, 8)).save(self.folder / f"{number}.png")

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, position):
        self.num_decoded += 1
        pixels = np.asarray(Image.open(self.folder / f"{position}.png"), dtype=np.float32)
        return torch.from_numpy(pixels).flatten() / 255, self.targets[position]


noisy, clean, test = make_data()
reference = make_reference(*clean)
print(f"reference             {accuracies(reference, *test)}")
with tempfile.TemporaryDirectory() as folder:
    scans = Scans(folder, *noisy)
    irreducible = reducr.Reference(reference).tabulate(scans)  # decodes every file once
    for name in ("uniform", "class_balanced", "priority_sampling", "with holdout examples"):
        model, scans.num_decoded = make_model(), 0
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        holdout = DataLoader(TensorDataset(*clean), batch_size=100)
        is_mixed = name == "with holdout examples"
        selector = reducr.make_selector("priority_sampling" if is_mixed else name, num_groups=NUM_CLASSES)
        sampler = reducr.SelectiveBatchSampler(
            scans,
            model,
            selector,
            irreducible,
            batch_size=10,
            holdout=holdout,
            refresh_steps=20,
            holdout_fraction=0.25 * is_mixed,
        )
        for _ in range(40):
            for inputs, labels in DataLoader(sampler.dataset, batch_sampler=sampler):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        print(f"{name:21} {accuracies(model, *test)}  {scans.num_decoded} of {40 * len(scans)} files decoded")
