"""Read pickles that hold only arrays of numbers and plain containers.

Nothing in a file is called, imported or given to NumPy before it is checked. ``pickle`` with a list of allowed calls is
not enough: NumPy's own ``__setstate__`` takes pointers from the file if the dtype in it says "object", and hashing a
deeply nested tuple overflows the stack.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_ITEM_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_BYTE_ORDERS = ("<", ">", "|", "=")
_MAX_AXES = 8
_PLAIN = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
)  # fmt: skip
"""Instructions whose argument is the value."""


def read_array_pickle(file: io.BytesIO) -> Any:
    """The content of one pickle, of any protocol. ``file`` is left behind it, so that several can be read in a row.

    Strings of Python 2 become text, byte by byte. Arrays become NumPy arrays where they are values
    of the outermost dict.

    Raises:
        pickle.UnpicklingError: if the pickle holds anything but plain containers, numbers, text, bytes and arrays of
            numbers, if it is damaged, or if the sizes of an array differ from the bytes that it has.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(file):
            machine.run(operation.name, argument)
        (content,) = machine.stack
    except pickle.UnpicklingError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is damaged: {error}") from error
    if type(content) is not dict:
        return content
    return {key: value.array() if type(value) is _Array else value for key, value in content.items()}


@dataclass(frozen=True)
class _Name:
    """What a pickle would import."""

    path: str


class _DType:
    """A dtype as a pickle describes it: its name first, its byte order later."""

    def __init__(self, name: str) -> None:
        if name.lstrip("".join(_BYTE_ORDERS)) not in _ITEM_TYPES:
            raise pickle.UnpicklingError("it has an array of something other than numbers")
        self.name = name

    def set_state(self, state: Any) -> None:
        # version, byte order, sub-array, field names, fields, and three numbers that the type implies
        if type(state) is not tuple or len(state) < 5 or state[2:5] != (None,) * 3 or state[1] not in _BYTE_ORDERS:
            raise pickle.UnpicklingError("it has an array of something other than numbers")
        self.name = state[1] + self.name.lstrip("".join(_BYTE_ORDERS))


class _Array:
    """An array as a pickle describes it: nothing first, its sizes and bytes later."""

    def __init__(self) -> None:
        self._array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        if self._array is not None or type(state) is not tuple or len(state) not in (4, 5):
            raise pickle.UnpicklingError("it has an array with another state than NumPy writes")
        sizes, dtype, is_fortran, content = state[-4:]
        if type(content) is str:  # bytes of Python 2
            content = content.encode("latin1")
        if type(sizes) is not tuple or type(dtype) is not _DType or type(content) is not bytes:
            raise pickle.UnpicklingError("it has an array with another state than NumPy writes")
        if len(sizes) > _MAX_AXES or any(type(size) is not int or size < 0 for size in sizes):
            raise pickle.UnpicklingError("it has an array with impossible sizes")
        item = np.dtype(dtype.name)
        if math.prod(sizes) * item.itemsize != len(content):
            raise pickle.UnpicklingError(f"it has an array of {len(content)} bytes, which do not fit its sizes")
        self._array = np.array(np.frombuffer(content, item).reshape(sizes, order="F" if is_fortran else "C"))

    def array(self) -> np.ndarray:
        if self._array is None:
            raise pickle.UnpicklingError("it has an array without content")
        return self._array


def _new_array(kind: Any, *_: Any) -> _Array:
    if kind != _Name("numpy.ndarray"):
        raise pickle.UnpicklingError("it has an array of another class")
    return _Array()


def _new_dtype(name: Any, *_: Any) -> _DType:
    if type(name) is not str:
        raise pickle.UnpicklingError("it has an array of something other than numbers")
    return _DType(name)


def _encoded(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("it calls _codecs.encode with arguments that no array needs")
    return text.encode("latin1")


_CALLS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _new_array,
    "numpy._core.multiarray._reconstruct": _new_array,
    "numpy.dtype": _new_dtype,
    "_codecs.encode": _encoded,
}
"""What takes the place of the calls in a pickled array, under their names in Python 2 and 3 and in NumPy 1 and 2."""
_NAMES = {*_CALLS, "numpy.ndarray"}


class _Machine:
    """The stack of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Run one instruction.

        Raises:
            pickle.UnpicklingError: if arrays and plain containers do not need it.
        """
        if name in _PLAIN:
            self.stack.append(argument)
            return
        instruction = _INSTRUCTIONS.get(name)
        if instruction is None:
            raise pickle.UnpicklingError(f"it has the instruction {name}, which no array needs")
        instruction(self, argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Pop everything above the last mark."""
        values, self.stack = self.stack, self._below.pop()
        return values

    def popped(self, number: int) -> tuple[Any, ...]:
        if number > len(self.stack):
            raise pickle.UnpicklingError("it is damaged")
        values = tuple(self.stack[len(self.stack) - number :])
        del self.stack[len(self.stack) - number :]
        return values

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def drop_marked(self) -> None:
        self.marked()

    def memoize(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def extend(self, values: list[Any] | tuple[Any, ...]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("it appends to something other than a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any] | tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise pickle.UnpicklingError("it sets items of something other than a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, bytes, int):  # others take long to hash, or overflow the stack
                raise pickle.UnpicklingError(f"it has a dict with a key of type {type(key).__name__}")
            target[key] = value

    def new_dict(self) -> None:
        values = self.marked()
        self.stack.append({})
        self.set_items(values)

    def import_name(self, path: str) -> None:
        if path not in _NAMES:
            raise pickle.UnpicklingError(f"it calls {path[:100]}, which no array needs")
        self.stack.append(_Name(path))

    def import_from_stack(self) -> None:
        module, name = self.popped(2)
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("it is damaged")
        self.import_name(f"{module}.{name}")

    def call(self) -> None:
        name, arguments = self.popped(2)
        if type(name) is not _Name or name.path not in _CALLS or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls something that no array needs")
        self.stack.append(_CALLS[name.path](*arguments))

    def build(self) -> None:
        (state,) = self.popped(1)
        if type(self.stack[-1]) not in (_Array, _DType):
            raise pickle.UnpicklingError("it sets the state of something other than an array")
        self.stack[-1].set_state(state)


_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "DICT": lambda machine, _: machine.new_dict(),
    "TUPLE1": lambda machine, _: machine.push(machine.popped(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.popped(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.popped(3)),
    "APPEND": lambda machine, _: machine.extend(machine.popped(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.popped(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.drop_marked(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, place: machine.memoize(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.recall(place)),
    "GLOBAL": lambda machine, name: machine.import_name(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.import_from_stack(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
