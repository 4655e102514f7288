"""Small made data in the official layout of every data set, for tests that run whole experiments."""

import gzip
import pickle
import struct

import numpy as np

WORDS = [
    "a",
    "red",
    "bird",
    "sat",
    "on",
    "the",
    "old",
    "green",
    "house",
    "while",
    "two",
    "dogs",
    "slept",
    "near",
    "some",
    "water",
    "and",
    "nobody",
    "saw",
    "them",
]


def fashion_mnist(folder):
    """Idx files: 900 training and 60 test images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, size in (("train", 900), ("t10k", 60)):
        _write_idx(raw / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        _write_idx(raw / f"{part}-labels-idx1-ubyte.gz", (np.arange(size) % 10).astype(np.uint8))


def _write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def cifar10(folder):
    """Python pickles: five batches of 40 training images, 30 test images, and CIFAR-10N's labels."""
    home = folder / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        _write_pickle(home / name, _images(40 if "data" in name else 30, labels=list(range(10))))
    _write_pickle(home / "batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    clean = np.tile(np.arange(40) // 2 % 10, 5)
    noisy = np.where(np.random.default_rng(1).random(200) < 0.4, (clean + 1) % 10, clean)
    names = ("clean_label", "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")
    np.savez(folder / "cifar10n_labels.npz", **{name: clean if name == "clean_label" else noisy for name in names})


def cifar100(folder):
    """Python pickles: 400 training and 200 test images, class c in superclass c mod 20."""
    home = folder / "cifar-100-python"
    home.mkdir(parents=True)
    for name, size in (("train", 400), ("test", 200)):
        contents = _images(size, labels=list(range(100)))
        contents["fine_labels"] = contents.pop("labels")
        contents["coarse_labels"] = [label % 20 for label in contents["fine_labels"]]
        _write_pickle(home / name, contents)
    names = {kind: [f"{kind} {number}" for number in range(size)] for kind, size in (("fine", 100), ("coarse", 20))}
    _write_pickle(home / "meta", {f"{kind}_label_names": values for kind, values in names.items()})


def _images(size, *, labels):
    """Labels come in pairs, so that even and odd indices have the same classes."""
    pixels = np.random.default_rng(size).integers(0, 256, (size, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [labels[position // 2 % len(labels)] for position in range(size)]}


def _write_pickle(path, contents):
    path.write_bytes(pickle.dumps(contents, protocol=2))


def cinic10(folder):
    """Folders of png files: 8, 4 and 3 images of each class."""
    from reducr.data.published.cinic10 import CLASS_NAMES

    for part, size in (("train", 8), ("valid", 4), ("test", 3)):
        for name in CLASS_NAMES:
            for number in range(size):
                _write_image(folder / part / name / f"{number}.png", 32)


def clothing1m(folder):
    """Key lists and label files over jpg files: 6 noisy and 2 clean training, 2 validation, 1 test image a class."""
    labels = {"clean": [], "noisy": []}
    for name, size in (("noisy_train", 6), ("clean_train", 2), ("clean_val", 2), ("clean_test", 1)):
        keys = [f"images/{label % 10}/{name}/{label},{number}.jpg" for label in range(14) for number in range(size)]
        (folder / f"{name}_key_list.txt").write_text("\n".join(keys))
        labels[name.split("_")[0]] += [f"{key} {int(key.split('/')[-1].split(',')[0])}" for key in keys]
        for key in keys:
            _write_image(folder / key, 40)
    for kind, lines in labels.items():
        (folder / f"{kind}_label_kv.txt").write_text("\n".join(lines))


def image_folder(folder):
    """Folders of png files, three classes of 40 images."""
    for name in ("cat", "dog", "owl"):
        for number in range(40):
            _write_image(folder / name / f"{number}.png", 20)


def _write_image(path, side):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(path.name))) + len(path.parts)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def mnli(folder):
    """Tab-separated files in the schema of the hub: 300 training and two times 60 validation pairs."""
    for part, size in (("train", 300), ("validation_matched", 60), ("validation_mismatched", 60)):
        _write_tsv(folder / f"{part}.tsv", ("premise", "hypothesis"), size, num_classes=3)


def qqp(folder):
    """Tab-separated files in the schema of the hub: 600 training and 60 validation pairs."""
    for part, size in (("train", 600), ("validation", 60)):
        _write_tsv(folder / f"{part}.tsv", ("question1", "question2"), size, num_classes=2)


def waterbirds(folder):
    """``metadata.csv`` over jpg files: 20 training, 6 holdout and 6 test images of each bird on each background."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(4 * 32):
        name = f"{number % 4}.Bird/Bird_{number}.jpg"
        split = 0 if number < 80 else 1 if number < 104 else 2
        lines.append(f"{number},{name},{number % 2},{split},{number // 2 % 2},/p/place.jpg")
        _write_image(folder / name, 40)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def nli(folder):
    """The four tab-separated files that are joined."""
    for name, size in (
        ("mnli_subset_train", 150), ("wiki_nli_train", 150), ("mnli_subset_validation", 60), ("wiki_nli_test", 30),
    ):  # fmt: skip
        _write_tsv(folder / "nli" / f"{name}.tsv.gz", ("premise", "hypothesis"), size, num_classes=3)


def tweets(folder):
    """Tab-separated training, holdout and test files of 20 classes."""
    for name, size in (("train", 300), ("val", 60), ("test", 40)):
        _write_tsv(folder / "tweeteval_emoji" / f"{name}.tsv.gz", ("text",), size, num_classes=20)


def intents(folder):
    """``intents.csv``: 300 texts of six intents."""
    _write_tsv(folder / "intents.csv", ("text",), 300, num_classes=6, separator=",")


def _write_tsv(path, columns, size, *, num_classes, separator="\t"):
    generator = np.random.default_rng(size)
    lines = [separator.join([*columns, "label", "idx"])]
    for row in range(size):
        target = row // 2 % num_classes  # pairs of rows, as some data sets are split by even and odd ones
        texts = [f"{WORDS[target % len(WORDS)]} {' '.join(generator.choice(WORDS, 5))} {row}" for _ in columns]
        lines.append(separator.join([*texts, str(target), str(row)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def domains(folder):
    """Texts of the five domains of ``benchmarks.language_model``, each with words of its own."""
    random = np.random.default_rng(0)

    def texts(letters, size=140):
        words = ["".join(random.choice(list(letters), size=3)) for _ in range(30)]
        return [" ".join(random.choice(words, size=random.integers(4, 12))) for _ in range(size)]

    rows = {
        "noisy_ag_news/train_medium.csv.gz": ["label,gt,text,group", *(f"0,0,{text},A" for text in texts("abcd"))],
        "nli/sick_train.tsv.gz": ["premise", *texts("efgh")],
        "nli/sick_test.tsv.gz": ["premise", *texts("efgh")],
        "nli/wiki_nli_train.tsv.gz": ["protocol\tpremise", *(f"base\t{text}" for text in texts("ijkl"))],
        "sst2/train.tsv.gz": [f"{text}\t1" for text in texts("mnop")],
        "tweeteval_emoji/train.tsv.gz": ["label\ttext", *(f"3\t{text}" for text in texts("qrst"))],
    }
    for name, lines in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
