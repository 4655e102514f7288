"""Selection with a model sharded by FSDP2 over two processes, with a checkpoint after every fifth epoch.

    pip install '.[train]'
    torchrun --nproc-per-node=2 examples/fsdp2.py RUN

Takes seconds. Prints the test accuracy of the reference model and of the sharded one, and what was selected. RUN is a
folder for checkpoints. A killed program resumes when started again, with the same result.
"""

import sys

import torch
import torch.distributed as dist
from noisy_digits import accuracies, make_data, make_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import reducr

torch.set_num_threads(1)
dist.init_process_group("gloo")
noisy, clean, test = make_data()
reference = reducr.fit_reference(make_model(), TensorDataset(*clean), num_epochs=100)  # the same on both processes
model = fully_shard(make_model(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # after fully_shard, which replaces the parameters
data = TensorDataset(*noisy)
batches = DataLoader(data, batch_size=50, sampler=DistributedSampler(data, drop_last=True), drop_last=True)
loader = reducr.SelectiveLoader(
    batches,
    model,
    "reducr",
    reducr.Reference(reference),
    fraction=0.1,
    holdout=[clean],
    step_size=1e-3,
    distributed="global",  # select from the candidates of both processes together
)
checkpoints = reducr.Checkpoints(sys.argv[1], sync=True)
parts = {"model": model, "optimizer": optimizer, "loader": loader}
checkpoints.resume(**parts)
while loader.epoch < 40:
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        (loss * loader.loss_weight).backward()  # the processes average their gradients
        optimizer.step()
        optimizer.zero_grad()
    if loader.epoch % 5 == 0:
        checkpoints.save(loader.epoch, **parts)

whole = make_model()
whole.load_state_dict({name: shard.full_tensor() for name, shard in model.state_dict().items()})
if dist.get_rank() == 0:
    print(f"reference  {accuracies(reference, *test)}")
    print(f"reducr     {accuracies(whole, *test)}")
    print(loader.report())
dist.destroy_process_group()
