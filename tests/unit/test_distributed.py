"""Collectives in one process; tests/distributed has several."""

import re

import pytest
import torch

from reducr._internal.distributed import (
    MODES,
    all_gather,
    all_gather_stacked,
    all_reduce_sum,
    all_reduce_sum_,
    check_mode,
    check_mode_name,
    is_main_rank,
    num_ranks,
    raise_on_all_ranks,
    raising_on_all_ranks,
    rank,
    shard,
)


def test_one_process_is_rank_0_of_1():
    assert (num_ranks(), rank(), is_main_rank()) == (1, 0, True)
    assert list(shard(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("tensor", [torch.tensor([0.5, float("nan")]), torch.zeros(0, 3), torch.tensor([True])])
def test_one_process_exchanges_nothing(tensor):
    torch.testing.assert_close(all_gather_stacked(tensor), tensor.unsqueeze(0), rtol=0, atol=0, equal_nan=True)
    (only,) = all_gather(tensor)
    torch.testing.assert_close(only, tensor, rtol=0, atol=0, equal_nan=True)


def test_sums_of_one_process_are_its_values():
    values = torch.tensor([0.1, 3.0], requires_grad=True)
    total = all_reduce_sum(values)
    assert total.tolist() == values.tolist()
    assert not total.requires_grad
    assert total.data_ptr() != values.data_ptr()
    whole = torch.tensor([1, 2])
    all_reduce_sum_(whole)
    assert whole.tolist() == [1, 2]


def test_an_error_of_one_process_stays_as_it_is():
    raise_on_all_ranks(None)
    error = OSError("disk full")
    with pytest.raises(OSError, match="disk full") as raised:
        raise_on_all_ranks(error)
    assert raised.value is error
    with pytest.raises(KeyError, match="key"), raising_on_all_ranks():
        raise KeyError("key")


@pytest.mark.parametrize("mode", [None, *MODES])
def test_every_mode_fits_one_process(mode, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_mode(mode)
    monkeypatch.delenv("WORLD_SIZE")
    check_mode(mode)


def test_an_unknown_mode_is_answered_with_the_nearest():
    for check in (check_mode, check_mode_name):
        with pytest.raises(ValueError, match=re.escape("unknown distributed mode 'locl'. Did you mean 'local'")):
            check("locl")


@pytest.mark.parametrize("mode", MODES)
def test_several_processes_without_a_process_group_are_an_error(mode, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=4, but .* not initialised.* Call .*init_process_group\(\) first"):
        check_mode(mode)
    check_mode_name(mode)
    check_mode(None)
