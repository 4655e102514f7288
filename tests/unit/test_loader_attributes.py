"""A ``SelectiveLoader`` passes for the loader in it, and refuses functions that would drop the selection."""

import copy
import pickle
import re

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr


def loaders(**options):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 4), torch.arange(48) % 3)
    inner = DataLoader(data, batch_size=20, drop_last=True, **options)
    selector = reducr.make_selector("train_loss", num_groups=3)
    return inner, reducr.SelectiveLoader(inner, nn.Linear(4, 3), selector, fraction=0.2)


def test_what_a_selective_loader_does_not_define_is_that_of_its_loader():
    inner, loader = loaders()
    for name in (
        "dataset", "sampler", "batch_sampler", "batch_size", "num_workers", "drop_last", "collate_fn", "pin_memory",
        "generator", "timeout", "persistent_workers", "worker_init_fn", "prefetch_factor",
    ):  # fmt: skip
        assert getattr(loader, name) is getattr(inner, name)
    assert (len(loader.dataset), len(loader)) == (48, 2)
    assert loader.loader.loader is inner


def test_an_attribute_that_neither_has_is_said_to_be_in_neither():
    _, loader = loaders()
    message = "Neither SelectiveLoader nor the DataLoader in it has an attribute 'mixup_enabled'."
    with pytest.raises(AttributeError, match=re.escape(message)):
        _ = loader.mixup_enabled
    assert getattr(loader, "mixup_enabled", None) is None
    with pytest.raises(AttributeError, match="'SelectiveLoader' object has no attribute '_iterator'"):
        _ = loader._iterator  # private names are not passed on


class Mixing(list):
    """A loader with a switch, as timm's."""

    mixup_enabled = True


def test_an_attribute_of_the_loader_is_set_in_the_loader():
    inner = Mixing([(torch.randn(20, 4), torch.arange(20) % 3)])
    loader = reducr.SelectiveLoader(inner, nn.Linear(4, 3), reducr.make_selector("train_loss", num_groups=3))
    loader.mixup_enabled = False
    loader.note = "mine"
    loader.accumulate_steps = 2
    assert (inner.mixup_enabled, loader.mixup_enabled, loader.note) == (False, False, "mine")
    assert not hasattr(inner, "note")
    assert not hasattr(inner, "accumulate_steps")


def test_an_error_in_a_property_is_raised_as_it_is():
    class Broken(reducr.SelectiveLoader):
        @property
        def dataset(self):
            return self.model.no_such_layer

    inner, _ = loaders()
    loader = Broken(inner, nn.Linear(4, 3), reducr.make_selector("train_loss", num_groups=3))
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'no_such_layer'"):
        _ = loader.dataset


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_passes_attributes_on_too(copied):
    _, loader = loaders()
    again = copied(loader)
    assert again.batch_size == 20
    assert [tuple(inputs.shape) for inputs, _ in again] == [(4, 4), (4, 4)]


def test_skip_first_batches_is_refused():
    _, loader = loaders()
    message = (
        "accelerate.skip_first_batches would build a plain loader from the data set of this SelectiveLoader, and "
        "nothing would be selected any more. Leave it out: a SelectiveLoader keeps its own place. Save its state "
        "(`accelerator.register_for_checkpointing(loader)`"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        skip_first_batches(loader, 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        Accelerator(cpu=True).skip_first_batches(loader, num_batches=1)


def test_a_selective_loader_is_prepared_before_it_is_wrapped():
    _, loader = loaders()
    message = "accelerate.prepare_data_loader would build a plain loader from the data set of this SelectiveLoader"
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare_data_loader(loader, device=torch.device("cpu"))
    assert Accelerator(cpu=True).prepare(loader) is loader  # in one process there is nothing to divide


def test_a_function_of_another_library_that_only_reads_is_not_refused():
    """The Trainer of transformers counts examples so."""
    from transformers import Trainer, TrainingArguments

    _, loader = loaders()
    trainer = Trainer(nn.Linear(4, 3), TrainingArguments("unused", report_to=[], use_cpu=True))
    assert trainer.num_examples(loader) == 48
