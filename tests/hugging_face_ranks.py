"""A training with the Trainer of transformers and one with accelerate, on as many processes as there are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate

import reducr
from hugging_face import FRACTION, NUM_CANDIDATES, REFRESH_STEPS, SEED, Texts, make_model, make_parts, make_trainer
from ranks import error_of, run_program
from reducr._internal.distributed import num_ranks, shard

NUM_POINTS, NUM_EPOCHS = 320, 2  # eight whole batches


def parameters_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def with_trainer(folder, *, mode="global", dropout=0.0, load=None, **options):
    """What the Trainer gives; the candidates of all ranks together are those of one process."""
    trainer = make_trainer(
        folder,
        model=make_model(dropout=dropout),
        data=Texts(NUM_POINTS),
        distributed=mode,
        per_device_train_batch_size=NUM_CANDIDATES // num_ranks(),
        num_train_epochs=NUM_EPOCHS,
        logging_steps=4,
        save_strategy="steps",
        save_steps=11,
        **options,
    )
    trainer.train(resume_from_checkpoint=load)
    picked = zip(trainer.picked, trainer.loss_weights, strict=True)
    return {
        "picked": [[] if not weight else index.tolist() for index, weight in picked],
        "weights": trainer.downsampler.selector.group_weights,
        "parameters": parameters_of(trainer.model),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "counts": trainer.report().group_counts,
    }


def with_accelerate(folder, *, split_batches=True, load=None):
    """What a loop with accelerate gives; ``split_batches`` shares every batch out over the ranks."""
    config = DataLoaderConfiguration(split_batches=split_batches, use_seedable_sampler=True, data_seed=SEED)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    model, (selector, irreducible) = make_model(dropout=0.0), make_parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    size = NUM_CANDIDATES // (1 if split_batches else num_ranks())
    batches = DataLoader(Texts(NUM_POINTS), batch_size=size, shuffle=True, collate_fn=default_collate)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    holdout = Texts(60, seed=2, columns=())
    loader = reducr.SelectiveLoader(
        batches,
        model,
        selector,
        irreducible,
        FRACTION,
        holdout=DataLoader(Subset(holdout, shard(len(holdout))), batch_size=20),
        refresh_steps=REFRESH_STEPS,
        distributed="global",
        seed=SEED,
    )
    accelerator.register_for_checkpointing(loader)
    if load is not None:
        accelerator.load_state(load)
    model.train()
    picked = []
    while loader.epoch < NUM_EPOCHS:
        for batch in loader:
            picked.append([] if loader.loss_weight == 0 else batch["idx"].tolist())
            loss = nn.functional.cross_entropy(model(batch["input_ids"]).logits, batch["label"])
            accelerator.backward(loss * loader.loss_weight)
            optimizer.step()
            optimizer.zero_grad()
            if len(picked) == 11 and load is None:
                accelerator.save_state(folder)
    loader.state_dict()
    return {"picked": picked, "weights": selector.group_weights, "parameters": parameters_of(model)}


def everything():
    """All that can be found out with one start of the processes."""
    folder = Path(sys.argv[2])
    checkpoint = str(folder / "dropout/checkpoint-11")
    return {
        "trainer": with_trainer(folder / "trainer"),
        "accelerate": with_accelerate(folder / "accelerate"),
        "accelerate again": with_accelerate(folder / "accelerate", load=folder / "accelerate"),
        "accelerate unsplit": with_accelerate(folder / "unsplit", split_batches=False),
        "dropout": with_trainer(folder / "dropout", dropout=0.1),
        "dropout again": with_trainer(folder / "again", dropout=0.1, load=checkpoint),
        "local": with_trainer(folder / "local", mode="local"),
        "no mode": error_of(make_trainer, folder, distributed=None),
    }


if __name__ == "__main__":
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # which accelerate asks for, though they have met
    run_program({"everything": everything})
