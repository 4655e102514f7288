"""Selection in a loop with accelerate, on one or several processes, with a checkpoint after every epoch.

    pip install '.[train,accelerate]'
    python examples/accelerate_loop.py RUN
    torchrun --nproc-per-node=2 examples/accelerate_loop.py RUN

Takes seconds. RUN is a folder for checkpoints. A killed program resumes when started again, with the same result.
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

# divide every batch over the processes; the order of examples depends only on the seed
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
    reducr.Reference(reference),
    fraction=0.1,
    holdout=[clean],
    refresh_steps=20,
    distributed="global",  # select from the candidates of all processes together
)
accelerator.register_for_checkpointing(loader)
checkpoints = sorted(folder.glob("epoch_*"))
if checkpoints:
    accelerator.load_state(checkpoints[-1])

while loader.epoch < 40:
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        accelerator.backward(loss * loader.loss_weight)  # 1 on a single process
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(folder / "partial")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # rename once it is complete, so that a partial checkpoint is never loaded
        (folder / "partial").rename(folder / f"epoch_{loader.epoch:03}")

accelerator.print(f"reducr     {accuracies(accelerator.unwrap_model(model).cpu(), *test)}")
accelerator.print(loader.report())
