"""Selection in a loop with accelerate, on one process or several, saved after every epoch.

    pip install '.[train,accelerate]'
    python examples/accelerate_loop.py RUN
    torchrun --nproc-per-node=2 examples/accelerate_loop.py RUN

takes seconds. RUN is a folder: kill the program, start it again, and it ends as if nothing had happened.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from noisy_digits import NUM_CLASSES, accuracies, make_data, make_model, make_reference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits

# every batch is shared out over the processes, in an order that the seed alone decides
config = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=0)
accelerator = Accelerator(cpu=not torch.cuda.is_available(), dataloader_config=config)
folder = Path(sys.argv[1])

noisy, clean, test = make_data()
reference = make_reference(*clean).to(accelerator.device)
model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
candidates = DataLoader(TensorDataset(*noisy), batch_size=100, shuffle=True)
model, optimizer, candidates = accelerator.prepare(model, optimizer, candidates)
loader = reducr.SelectiveLoader(
    candidates,
    model,
    reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=1e-3),
    AdjustedIrreducibleLoss(LiveLogits(reference)),
    fraction=0.1,
    holdout=[clean],
    refresh_steps=20,
    distributed="global",  # the best of all processes' candidates together
)
accelerator.register_for_checkpointing(loader)
saved = sorted(folder.glob("epoch_*"))
if saved:
    accelerator.load_state(saved[-1])

while loader.epoch < 40:
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        accelerator.backward(loss * loader.loss_weight)  # 1 on a single process
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(folder / "partial")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # under its name in one move, so that a half-written state is never loaded
        (folder / "partial").rename(folder / f"epoch_{loader.epoch:03}")

accelerator.print(f"reducr     {accuracies(accelerator.unwrap_model(model).cpu(), *test)}")
accelerator.print(loader.report())
