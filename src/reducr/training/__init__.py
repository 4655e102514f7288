"""Selection in a training loop: the loader, the plain loop, auxiliary models, checkpoints, exact resumption."""
