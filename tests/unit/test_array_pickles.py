"""Pickles of arrays, as written by every protocol and as forged by someone else."""

import io
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest

import forked
from fuzz import forged_pickles
from reducr.data.io.array_pickles import read_array_pickle

SCRIPT = Path(forged_pickles.__file__)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1, -(2**40)], dtype=">i8"),
        np.array([True, False]),
        np.array(7, dtype=np.int32),
    ],
    ids=["uint8", "fortran", "big endian", "bool", "scalar"],
)
def test_arrays_of_numbers_and_plain_containers_are_read(array, protocol):
    others = {"list": [1, 2**40, -3, None, True, 2.5, "é", b"x\xff", ()], "tuple": ((1,), (1, 2), (1, 2, 3, 4)), 5: {}}
    content = read_array_pickle(io.BytesIO(pickle.dumps({"array": array, **others}, protocol=protocol)))
    read = content.pop("array")
    assert content == others
    assert (read.dtype, read.shape, read.tolist()) == (array.dtype, array.shape, array.tolist())


def test_pickles_in_a_row_are_read_one_by_one():
    file = io.BytesIO(pickle.dumps([1]) + pickle.dumps({"a": 2}))
    assert [read_array_pickle(file), read_array_pickle(file)] == [[1], {"a": 2}]


@pytest.mark.parametrize(("num_mutants", "depth"), [(20, 2000), pytest.param(5000, 3_000_000, marks=pytest.mark.long)])
def test_forged_pickles_are_refused_and_crash_nothing(tmp_path, num_mutants, depth):
    """NumPy takes pointers from a pickle whose dtype says "object", and a deep tuple as a key overflows the stack."""
    done = forked.run([SCRIPT, tmp_path, num_mutants, depth])
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0, f"{last}: {signal.Signals(-done.returncode) if done.returncode < 0 else done.stderr}"
    num_refused = int(last.split()[1].rstrip(","))
    assert num_refused > len(forged_pickles.VALUES) + num_mutants / 2
