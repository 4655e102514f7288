"""Small made files of CIFAR-10, CIFAR-100 and CIFAR-N in every layout that is read or converted."""

import io
import itertools
import json
import pickle
import struct
import zipfile

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE, COARSE = tuple(f"fine {number}" for number in range(100)), tuple(f"coarse {number}" for number in range(20))
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
HUMAN = {
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
}


def images_of(size, seed):
    return np.random.default_rng(seed).integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)


def labels_of(size, num_classes):
    """In pairs, so that even and odd indices have the same classes."""
    return (np.arange(size) // 2 % num_classes).tolist()


# 100 training and 20 test images; 200 and 100 of CIFAR-100, class c in superclass 7 c mod 20
PIXELS, LABELS = images_of(120, 0), labels_of(120, 10)
PIXELS_100, LABELS_100 = images_of(300, 1), labels_of(300, 100)
COARSE_100 = [7 * label % 20 for label in LABELS_100]


def python2_pickle(contents):
    """The bytes that Python 2's cPickle made of a dict of strings, numbers, lists of those, and arrays of bytes."""
    memo = itertools.count(1)

    def remembered():
        place = next(memo)
        return b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place)

    def plain(value):
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode() + remembered()
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def array(value):
        parts = [b"cnumpy.core.multiarray\n_reconstruct\n", remembered(), b"cnumpy\nndarray\n", remembered()]
        parts += [b"K\x00\x85U\x01b\x87R", remembered(), b"(K\x01", *map(plain, value.shape), b"\x86cnumpy\ndtype\n"]
        parts += [remembered(), b"U\x02u1K\x00K\x01\x87R", remembered(), b"(K\x03U\x01|NNN", 2 * b"J\xff\xff\xff\xff"]
        return b"".join([*parts, b"K\x00tb\x89T", struct.pack("<I", value.size), value.tobytes(), b"tb"])

    def any_value(value):
        if isinstance(value, np.ndarray):
            return array(value)
        if not isinstance(value, list):
            return plain(value)
        head = b"]" + remembered()
        chunks = (value[start : start + 1000] for start in range(0, len(value), 1000))
        return head + b"".join(b"(" + b"".join(map(plain, chunk)) + b"e" for chunk in chunks)

    head = b"\x80\x02}" + remembered() + b"("
    return head + b"".join(plain(key) + any_value(value) for key, value in contents.items()) + b"u."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_pickles(folder, pixels=PIXELS, labels=LABELS, num_test=20, filenames=None):
    """The python version of CIFAR-10."""
    filenames = [f"{number}.png" for number in range(len(labels))] if filenames is None else filenames
    size = (len(labels) - num_test) // 5
    for number, name in enumerate((*BATCHES, "test_batch")):
        part = slice(number * size, (number + 1) * size if name in BATCHES else None)
        title = f"training batch {number + 1} of 5" if name in BATCHES else "testing batch 1 of 1"
        rows = pixels[part].reshape(-1, 3072)
        contents = {"batch_label": title, "labels": list(labels[part]), "data": rows, "filenames": filenames[part]}
        write(folder / name, python2_pickle(contents))
    meta = {"num_cases_per_batch": size, "label_names": list(NAMES), "num_vis": 3072}
    write(folder / "batches.meta", python2_pickle(meta))


def write_pickles_100(folder, coarse=COARSE_100):
    """The python version of CIFAR-100."""
    for name, part in (("train", slice(200)), ("test", slice(200, None))):
        contents = {
            "filenames": [f"{number}.png" for number in range(len(LABELS_100[part]))],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": LABELS_100[part],
            "coarse_labels": coarse[part],
            "data": PIXELS_100[part].reshape(-1, 3072),
        }
        write(folder / name, python2_pickle(contents))
    write(folder / "meta", python2_pickle({"fine_label_names": list(FINE), "coarse_label_names": list(COARSE)}))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "png", compress_level=1)
    return file.getvalue()


def write_parquet(folder, pixels, columns, *, num_train, names=None):
    """The files of the Hugging Face hub; ``names`` of labels go into the schema."""
    folder.mkdir(parents=True, exist_ok=True)
    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    features = {name: {"names": list(names[name]), "_type": "ClassLabel"} for name in names or {}}
    metadata = {"huggingface": json.dumps({"info": {"features": {"img": {"_type": "Image"}, **features}}})}
    for name, part in (("train", slice(num_train)), ("test", slice(num_train, None))):
        encoded = [{"bytes": png(image), "path": None} for image in pixels[part]]
        arrays = {"img": pyarrow.array(encoded, image_type)}
        arrays |= {column: pyarrow.array(values[part], pyarrow.int64()) for column, values in columns.items()}
        table = pyarrow.table(arrays)
        parquet.write_table(
            table.replace_schema_metadata(metadata) if names else table, folder / f"{name}-00000-of-00001.parquet"
        )


def write_hub(folder):
    write_parquet(folder, PIXELS, {"label": LABELS}, num_train=100, names={"label": NAMES})


def write_hub_100(folder):
    columns = {"fine_label": LABELS_100, "coarse_label": COARSE_100}
    names = {"fine_label": FINE, "coarse_label": COARSE}
    write_parquet(folder, PIXELS_100, columns, num_train=200, names=names)


def write_sheets(folder):
    """Six lossless WebP pictures of 5 rows of 4 images, and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*BATCHES, "test_batch")):
        grid = PIXELS[20 * number : 20 * (number + 1)].reshape(5, 4, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        Image.fromarray(grid.reshape(160, 128, 3)).save(folder / f"{name}.webp", lossless=True)
    labels = np.array(LABELS, dtype=np.uint8)
    np.savez(
        folder / "labels.npz",
        train_label=labels[:100],
        test_label=labels[100:],
        train_filename=np.array([f"{number}.png" for number in range(100)], dtype=np.bytes_),
        test_filename=np.array([f"{number}.png" for number in range(100, 120)], dtype=np.bytes_),
        class_names=np.array(NAMES, dtype=np.bytes_),
    )


def human_labels(clean, keys):
    """One kind of labels after the other: wrong (the next class) at the first 10, 20, 30, ... images."""
    clean = np.asarray(clean)
    noisy = {
        key: np.where(np.arange(len(clean)) < 10 * (place + 1), (clean + 1) % (clean.max() + 1), clean)
        for place, key in enumerate(keys)
    }
    return {"clean_label": clean, **noisy}


def write_human(path, contents):
    """``.npz``, or ``.pt`` as ``torch.save`` made it of NumPy 1 arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{key: np.asarray(values).astype(np.uint8) for key, values in contents.items()})
        return
    content = pickle.dumps(contents, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")


HUMAN_10 = human_labels(LABELS[:100], HUMAN.values())
