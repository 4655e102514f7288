"""Hostile pickles for the readers of CIFAR: ``python forged_pickles.py FOLDER NUM_MUTANTS DEPTH``.

Reads each as a batch of CIFAR and as a file of labels, and prints how many were refused with a ``ValueError`` that
names the file. Anything else ends the process: with a traceback, or by a signal.
"""

import io
import pickle
import random
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np

from reducr.data.published.cifar_files import Layout, entry, naming_file, read_human_labels, read_pickles

ADDRESS = struct.pack("<4Q", *[0x4141414141414141] * 4)
RECONSTRUCT = np.ndarray(0).__reduce__()[0]
MAX_MEMORY_BYTES = 2**35  # of addresses: an interpreter with torch has 2^33 or so


class Call:
    """Pickled as a call and a state."""

    def __init__(self, function, arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def dtype(name, state=None, align=False):
    return Call(np.dtype, (name, align, True), state)


def array(type_, sizes=(4,), content=ADDRESS, version=1, is_fortran=False):
    return Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (version, sizes, type_, is_fortran, content))


def dtype_state(order="|", *, base=None, names=None, fields=None, size=8, alignment=1, flags=0):
    return (3, order, base, names, fields, size, alignment, flags)


OBJECT, NUMBER = np.dtype("O"), dtype("u1", dtype_state("|", size=-1, alignment=-1))
VALUES = {
    "objects": array(OBJECT),
    "objects, named by a dtype": array(dtype("O8", dtype_state(flags=0))),
    "a field of objects": array(dtype("V8", dtype_state(names=("a",), fields={"a": (OBJECT, 0)}))),
    "a field beyond the item": array(dtype("V8", dtype_state(names=("a",), fields={"a": (np.dtype("i8"), 2**30)}))),
    "a sub-array of objects": array(dtype("V8", dtype_state(base=(OBJECT, (1,))))),
    "a sub-array of many": array(dtype("V8", dtype_state(base=(np.dtype("u1"), (2**31, 2**31))))),
    "numbers that become objects": array(dtype("i8", dtype_state("<", names=("a",), fields={"a": (OBJECT, 0)}))),
    "items of no size": array(dtype("V0", dtype_state(size=0)), (2**40,), b""),
    "items of a negative size": array(dtype("V8", dtype_state(size=-8))),
    "text": array(dtype("U2", dtype_state("<", size=8, alignment=4))),
    "text of any length": array(dtype("S0", dtype_state(size=2**31 - 1))),
    "dates": array(dtype("M8", (4, "<", None, None, None, -1, -1, 0, ({}, (b"D", 2**31 - 1, 1, 1))))),
    "long doubles": array(dtype("g")),
    "a comma dtype": array(dtype("O,O")),
    "too few bytes": array(NUMBER, (2, 3072), b"12"),
    "too many bytes": array(NUMBER, (1,), b"12"),
    "negative sizes": array(NUMBER, (-1, -4), b"1234"),
    "sizes that overflow": array(NUMBER, (2**32, 2**32), b""),
    "sizes that are no numbers": array(NUMBER, ("a", 1.5), b""),
    "true sizes": array(NUMBER, (True,), b"1"),
    "33 axes": array(NUMBER, (1,) * 33, b"1"),
    "a hundred axes": array(NUMBER, (1,) * 100, b"1"),
    "objects in a list": array(OBJECT, (1,), [1]),
    "no bytes": array(NUMBER, (1,), None),
    "no state": Call(RECONSTRUCT, (np.ndarray, (0,), b"b")),
    "short state": Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1,)),
    "huge array of nothing": Call(RECONSTRUCT, (np.ndarray, (2**40,), b"b")),
    "huge array made at once": Call(np.ndarray, ((2**40,), "u1")),
    "array of objects made at once": Call(np.ndarray, ((4,), "O", bytearray(ADDRESS))),
    "strides out of the buffer": Call(np.ndarray, ((4,), "u1", bytearray(4), 0, (2**40,))),
    "a dtype": NUMBER,
    "state of a dtype": dtype("u1", (3, None)),
}  # fmt: skip


def batch(value):
    return {"data": value, "labels": [0]}


def forged_pickles(depth):
    """Name and content; ``depth`` is that of nested containers."""
    for name, value in VALUES.items():
        yield name, pickle.dumps(batch(value), protocol=2)
    head, tail = b"\x80\x02}(U\x04data", b"U\x06labels](K\x00eu."
    nested = b")" + b"\x85" * depth
    yield "a deep tuple as key", b"\x80\x02}" + nested + b"Ns."
    yield "a deep tuple in a set", b"\x80\x04\x8f(" + nested + b"\x90."
    yield "a deep frozen set", b"\x80\x04(" + nested + b"\x91."
    yield "a deep list", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    yield "a deep tuple as labels", head + b"K\x01U\x06labels" + nested + b"u."
    laughs = b"]q\x00K\x01a" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))
    yield "lists of lists of lists", head + b"K\x01U\x06labels" + laughs + b"u."
    yield "a list of itself", head + b"]q\x00h\x00a" + tail
    yield "a high place in the memo", head + b"Nr" + struct.pack("<I", 2**31 - 1) + tail
    yield "a long text", head + b"X" + struct.pack("<I", 2**32 - 1) + tail
    yield "long bytes", head + b"\x8e" + struct.pack("<Q", 2**60) + tail
    yield "a long bytearray", head + b"\x96" + struct.pack("<Q", 2**33) + tail
    yield "a long frame", b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}."
    yield "a negative length", head + b"T" + struct.pack("<i", -1) + tail
    yield "a number with many digits", head + b"L" + b"9" * 100_000 + b"L\n" + tail
    call = b"c_codecs\nencode\n"
    for encoding in (b"utf-32", b"zlib", b"bz2", b"hex", b"idna", b"unicode_escape"):
        grown = call + b"X\x01\x00\x00\x00aX" + struct.pack("<I", len(encoding)) + encoding + b"\x86R"
        yield f"an encoding {encoding}", head + grown + tail
    yield "a changed function", head + call + b"}U\x08__name__U\x01asb" + tail
    yield "a changed reconstructor", head + b"cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__Ns\x86b" + tail
    yield "a persistent id", head + b"Ppersistent\n" + tail
    yield "an extension", head + b"\x82\x01" + tail
    yield "another class", head + b"cbuiltins\nobject\n)\x81" + tail
    yield "an instance", head + b"(cos\nsystem\no" + tail
    yield "an old instance", head + b"(ios\nsystem\n" + tail
    yield "a call without arguments", head + b"cnumpy\ndtype\nNR" + tail
    yield "a call of data", head + b"U\x01a)R" + tail
    yield "state of a list", head + b"]}b" + tail
    yield "a class as array", head + b"cnumpy\nndarray\n)\x81(K\x01(K\x04t" + tail
    for opcode in range(256):
        yield f"instruction {opcode}", head + b"]" + bytes([opcode]) + tail


def mutants(number, seed=0):
    """Valid batches with some bytes changed, removed or repeated."""
    draw = random.Random(seed)
    valid = [pickle.dumps(batch(np.zeros((1, 3072), np.uint8)), protocol=protocol) for protocol in range(5)]
    for turn in range(number):
        content = bytearray(valid[turn % len(valid)])
        ends = min(len(content), 200)  # most of it is pixels
        for _ in range(draw.randrange(1, 4)):
            place = draw.choice([draw.randrange(ends), len(content) - 1 - draw.randrange(ends)])
            change = draw.randrange(3)
            if change == 0:
                content[place] = draw.randrange(256)
            elif change == 1:
                del content[place : place + draw.randrange(1, 9)]
            else:
                content[place:place] = content[draw.randrange(ends) :][: draw.randrange(1, 40)]
            if len(content) < 2 * ends:
                break
        yield f"mutant {turn}", bytes(content)


def as_torch_file(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def use(value):
    """Touch everything that a reader gives."""
    for array_ in value.values() if isinstance(value, dict) else ():
        if isinstance(array_, np.ndarray):
            repr(array_)
            array_.tolist()


def check(is_right, name):
    assert is_right, name


def main(folder, num_mutants, depth):
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    layout = Layout("", ("batch",), ("labels",), read_pickles, "meta")
    (folder / "meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}, protocol=2))
    refused, read = [], []
    for name, content in [*forged_pickles(depth), *mutants(num_mutants)]:
        print(name, flush=True)  # noqa: T201  (the last one is the one that crashed)
        (folder / "batch").write_bytes(content)
        (folder / "human.pt").write_bytes(as_torch_file(content))
        try:
            read_pickles(folder, layout)
        except ValueError as error:
            check(str(folder / "batch") in str(error), name)
            refused.append(name)
        else:
            read.append(name)
        try:
            with naming_file(folder / "human.pt"):
                labels = read_human_labels(folder / "human.pt")
                use(labels)
                entry(labels, "clean_label")
        except ValueError as error:
            check(str(folder / "human.pt") in str(error), name)
        check(name not in VALUES or name in refused, name)
    print(f"refused {len(refused)}, read {len(read)}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
