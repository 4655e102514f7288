import hashlib
import os
import pickle
import re
import shutil
import tarfile
from dataclasses import replace
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from benchmarks.cifar_sheets import convert
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from cifar_data import (
    BATCHES,
    COARSE_100,
    FINE,
    HUMAN,
    HUMAN_10,
    LABELS,
    LABELS_100,
    NAMES,
    PIXELS,
    PIXELS_100,
    human_labels,
    write,
    write_hub,
    write_hub_100,
    write_human,
    write_parquet,
    write_pickles,
    write_pickles_100,
)
from reducr.data.published.cifar import CIFAR10, CIFAR100
from reducr.data.published.cifar_files import read_human_labels

DATA_DIR = os.environ.get("REDUCR_DATA_DIR")

# the layouts


@pytest.mark.parametrize("place", ["usual", "."])
@pytest.mark.parametrize(
    ("usual", "write_layout"),
    [("cifar-10-batches-py", write_pickles), ("plain_text", write_hub)],
    ids=["pickles", "parquet"],
)
def test_every_layout_of_cifar10_gives_the_same_examples_in_original_order(tmp_path, usual, write_layout, place):
    write_layout(tmp_path / (usual if place == "usual" else place))
    raw = CIFAR10(data_dir=str(tmp_path)).read()
    assert raw.input.dtype == torch.uint8
    assert np.array_equal(raw.input.numpy(), PIXELS)
    assert raw.target.dtype == torch.int64
    assert raw.target.tolist() == LABELS
    assert raw.class_names == NAMES
    assert {name: positions.tolist() for name, positions in raw.parts.items()} == {
        "train": list(range(0, 100, 2)),
        "holdout": list(range(1, 100, 2)),
        "test": list(range(100, 120)),
    }
    assert (raw.noisy_target, raw.group, raw.num_groups, raw.group_of_target, raw.notes) == (None, None, None, None, ())


@pytest.mark.parametrize("place", ["usual", "."])
@pytest.mark.parametrize(
    ("usual", "write_layout"), [("cifar-100-python", write_pickles_100), ("cifar100", write_hub_100)]
)
def test_every_layout_of_cifar100_gives_the_same_examples_and_superclasses(tmp_path, usual, write_layout, place):
    write_layout(tmp_path / (usual if place == "usual" else place))
    raw = CIFAR100(data_dir=tmp_path).read()
    assert np.array_equal(raw.input.numpy(), PIXELS_100)
    assert raw.target.tolist() == LABELS_100
    assert raw.class_names == FINE
    assert raw.num_groups == 20
    assert raw.group_of_target.tolist() == [7 * label % 20 for label in range(100)]
    assert raw.group_names[:2] == ("coarse 0", "coarse 1")
    assert [len(raw.parts[part]) for part in ("train", "holdout", "test")] == [100, 100, 100]


def test_pickles_written_by_python_3_are_read(tmp_path):
    write_pickles(tmp_path)
    for name in (*BATCHES, "test_batch", "batches.meta"):
        contents = pickle.loads((tmp_path / name).read_bytes(), encoding="latin1")
        write(tmp_path / name, pickle.dumps(contents, protocol=2))
    assert np.array_equal(CIFAR10(data_dir=tmp_path).read().input.numpy(), PIXELS)


def test_classes_without_names_are_numbered_with_a_note(tmp_path):
    columns = {"fine_label": LABELS_100, "coarse_label": COARSE_100}
    write_parquet(tmp_path, PIXELS_100, columns, num_train=200)
    raw = CIFAR100(data_dir=tmp_path).read()
    assert raw.class_names == tuple(map(str, range(100)))
    assert raw.num_groups == 20
    assert raw.notes == ("The files do not name their classes, so the classes are numbered.",)


# splits and groups


def test_even_indices_train_and_odd_ones_hold_out(tmp_path):
    write_pickles(tmp_path)
    splits = CIFAR10(data_dir=tmp_path).splits(seed=0)
    assert splits.train.source.tolist() == list(range(0, 100, 2))
    assert splits.holdout.source.tolist() == list(range(1, 100, 2))
    assert splits.test.source.tolist() == list(range(100, 120))
    assert torch.equal(splits.train.group, splits.train.target)
    assert not bool(splits.train.is_corrupted.any())


def test_holdout_can_be_drawn_instead(tmp_path):
    write_pickles(tmp_path)
    splits = CIFAR10(data_dir=tmp_path, split=None, holdout_size=30).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [70, 30, 20]
    assert sorted(splits.train.source.tolist() + splits.holdout.source.tolist()) == list(range(100))
    assert torch.bincount(splits.holdout.target).tolist() == [3] * 10
    assert set((splits.holdout.source % 2).tolist()) == {0, 1}


def test_groups_of_cifar100_are_superclasses_or_classes(tmp_path):
    write_pickles_100(tmp_path)
    train = CIFAR100(data_dir=tmp_path).splits(seed=0).train
    assert train.num_groups == 20
    assert train.group.tolist() == COARSE_100[:200:2]
    train = CIFAR100(data_dir=tmp_path, groups="class").splits(seed=0).train
    assert train.num_groups == 100
    assert train.group.tolist() == LABELS_100[:200:2]


def test_a_class_in_two_superclasses_is_named(tmp_path):
    write_pickles_100(tmp_path, coarse=[*COARSE_100[:41], 3, *COARSE_100[42:]])
    # which image is the odd one out cannot be known
    message = "class 'fine 20' has images in more than one superclass; image (40 is in 'coarse 0'|41 is in 'coarse 3')"
    with pytest.raises(ValueError, match=message):
        CIFAR100(data_dir=tmp_path).read()
    assert CIFAR100(data_dir=tmp_path, groups="class").read().group_of_target is None


# labels of CIFAR-N


@pytest.mark.parametrize(("labels", "num_wrong"), [(labels, 10 * place + 10) for place, labels in enumerate(HUMAN)])
@pytest.mark.parametrize("name", ["CIFAR-10_human.pt", "cifar10n_labels.npz"])
def test_human_labels_are_shown_in_the_training_part_alone(tmp_path, name, labels, num_wrong):
    write_pickles(tmp_path)
    write_human(tmp_path / name, HUMAN_10)
    module = CIFAR10(data_dir=tmp_path, labels=labels)
    raw = module.read()
    assert raw.target.tolist() == LABELS
    assert raw.noisy_target.tolist() == [*HUMAN_10[HUMAN[labels]].tolist(), *LABELS[100:]]
    splits = module.splits(seed=0)
    assert torch.nonzero(splits.train.is_corrupted).flatten().tolist() == list(range(num_wrong // 2))
    assert splits.train.target.tolist() == HUMAN_10[HUMAN[labels]][::2].tolist()
    assert splits.holdout.target.tolist() == LABELS[1:100:2]
    assert splits.test.target.tolist() == LABELS[100:]


@pytest.mark.parametrize("name", ["CIFAR-100_human.pt", "cifar100n_labels.npz"])
def test_human_labels_of_cifar100_decide_its_groups_too(tmp_path, name):
    write_pickles_100(tmp_path / "cifar-100-python")
    clean = np.array(LABELS_100[:200])
    contents = {"clean_label": clean, "noisy_label": np.where(clean < 5, (clean + 1) % 5, clean)}
    # the official file has these as lists
    coarse = {"clean_coarse_label": COARSE_100[:200], "noisy_coarse_label": COARSE_100[:200]}
    write_human(tmp_path / name, contents | coarse)
    train = CIFAR100(data_dir=tmp_path, labels="noisy").splits(seed=0).train
    assert train.target.tolist() == contents["noisy_label"][::2].tolist()
    assert train.group.tolist() == (7 * train.target % 20).tolist()
    assert int(train.is_corrupted.sum()) == 5


@pytest.mark.parametrize("place", ["data", "data/cifar_n", "data/CIFAR-N", "cifar_n"])
def test_human_labels_are_found_beside_the_images(tmp_path, place):
    write_pickles(tmp_path / "data")
    write_human(tmp_path / place / "cifar10n_labels.npz", HUMAN_10)
    assert int((CIFAR10(data_dir=tmp_path / "data", labels="worse").splits(seed=0).train.is_corrupted).sum()) == 25


def test_human_labels_of_images_in_another_order_are_refused(tmp_path):
    order = np.argsort(LABELS[:100], kind="stable")
    pixels, labels = PIXELS.copy(), np.array(LABELS)
    pixels[:100], labels[:100] = PIXELS[order], labels[order]
    write_parquet(tmp_path, pixels, {"label": labels.tolist()}, num_train=100, names={"label": NAMES})
    write_human(tmp_path / "CIFAR-10_human.pt", HUMAN_10)
    num_different = int((labels[:100] != np.array(LABELS[:100])).sum())
    assert CIFAR10(data_dir=tmp_path).read().target.tolist() == labels.tolist()
    with pytest.raises(ValueError, match=r"not in the order that `datamodule\.labels=worse` needs") as caught:
        CIFAR10(data_dir=tmp_path, labels="worse").read()
    assert f"differ from the clean labels in {tmp_path / 'CIFAR-10_human.pt'} at {num_different} of 100" in str(
        caught.value
    )
    assert str(caught.value).startswith(f"The images in {tmp_path} are")


def test_the_error_for_missing_human_labels_lists_the_folders(tmp_path):
    write_pickles(tmp_path / "cifar-10-batches-py")
    message = r"`datamodule\.labels=aggre` needs CIFAR-10_human\.pt or cifar10n_labels\.npz, which is not in "
    with pytest.raises(FileNotFoundError, match=message) as caught:
        CIFAR10(data_dir=tmp_path, labels="aggre").read()
    assert f"{tmp_path}, {tmp_path / 'cifar_n'}, {tmp_path / 'CIFAR-N'}. " in str(caught.value)
    assert "Set `datamodule.download=true`" in str(caught.value)


@pytest.mark.parametrize("name", ["CIFAR-10_human.pt", "cifar10n_labels.npz"])
@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"clean_label": LABELS[:100]}, "it has no 'worse_label'"),
        ({"worse_label": LABELS[:100]}, "it has no 'clean_label'"),
        ({"clean_label": LABELS[:90], "worse_label": LABELS[:90]}, "it has 90 labels for the 100 training images in"),
        (
            {"clean_label": LABELS[:100], "worse_label": [*LABELS[:99], 10]},
            "worse_label must be in 0..9; image 99 holds 10",
        ),
    ],
)
def test_human_labels_that_do_not_fit_are_refused(tmp_path, name, contents, message):
    write_pickles(tmp_path)
    write_human(tmp_path / name, {key: np.asarray(values) for key, values in contents.items()})
    message = f"{tmp_path / name} is damaged or not what its name says ({message}"
    with pytest.raises(ValueError, match=re.escape(message)):
        CIFAR10(data_dir=tmp_path, labels="worse").read()


# files that are damaged or missing


class Touch:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path):
    write_pickles(tmp_path)
    write(tmp_path / "data_batch_3", pickle.dumps({"data": Touch(tmp_path / "touched")}, protocol=2))
    message = r"data_batch_3 is damaged or not what its name says \(it calls .*, which no array needs\)"
    with pytest.raises(ValueError, match=message):
        CIFAR10(data_dir=tmp_path).read()
    assert not (tmp_path / "touched").exists()


def test_human_labels_that_call_something_are_refused_and_call_nothing(tmp_path):
    write_pickles(tmp_path)
    write_human(tmp_path / "CIFAR-10_human.pt", {"clean_label": Touch(tmp_path / "touched")})
    message = r"CIFAR-10_human\.pt is damaged or not what its name says \(it is truncated, or contains more than arrays"
    with pytest.raises(ValueError, match=message):
        CIFAR10(data_dir=tmp_path, labels="worse").read()
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "html"])
@pytest.mark.parametrize(
    ("write_layout", "name"),
    [
        (write_pickles, "data_batch_2"),
        (write_pickles, "batches.meta"),
        (write_hub, "test-00000-of-00001.parquet"),
        (write_pickles, "CIFAR-10_human.pt"),
        (write_pickles, "cifar10n_labels.npz"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, write_layout, name, damage):
    write_layout(tmp_path)
    if "10" in name:
        write_human(tmp_path / name, HUMAN_10)
    content = (tmp_path / name).read_bytes()
    content = {"cut": content[: 2 * len(content) // 3], "empty": b"", "html": b"<html>not found</html>"}[damage]
    write(tmp_path / name, content)
    message = rf"{re.escape(str(tmp_path / name))} is damaged or not what its name says \(.+\)\. Get the file again\."
    with pytest.raises(ValueError, match=message) as caught:
        CIFAR10(data_dir=tmp_path, labels="worse" if "10" in name else "clean").read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"labels": [1, 2]}, "it has no 'data'"),
        ({"data": PIXELS[:2].reshape(2, 3072)}, "it has no 'labels'"),
        ({"data": PIXELS[:2].reshape(2, 3072), "labels": [1, 2, 3]}, "it has 3 labels for 2 images"),
        (
            {"data": PIXELS[:2].reshape(2, 3072).astype(float), "labels": [1, 2]},
            "images must be (N, 3, 32, 32) of uint8",
        ),
        ({"data": np.zeros((2, 3000), np.uint8), "labels": [1, 2]}, "cannot reshape"),
        ([1, 2, 3], "it has no 'data'"),
    ],
)
def test_a_batch_that_is_none_is_named(tmp_path, contents, message):
    write_pickles(tmp_path)
    write(tmp_path / "data_batch_5", pickle.dumps(contents, protocol=2))
    message = f"{tmp_path / 'data_batch_5'} is damaged or not what its name says ({message}"
    with pytest.raises(ValueError, match=re.escape(message)):
        CIFAR10(data_dir=tmp_path).read()


def test_the_hubs_cifar100_is_not_taken_for_cifar10(tmp_path):
    write_hub_100(tmp_path)
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet is .* \(it has no 'label'\)"):
        CIFAR10(data_dir=tmp_path).read()


def test_a_label_without_a_class_is_named(tmp_path):
    write_pickles(tmp_path, labels=[*LABELS[:33], 10, *LABELS[34:]])
    message = f"{tmp_path}: target must be in 0..9; image 33 holds 10 (1 such in all)."
    with pytest.raises(ValueError, match=re.escape(message)):
        CIFAR10(data_dir=tmp_path).read()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (CIFAR10, ["  cifar-10-batches-py: data_batch_1, ", "  plain_text: train-00000"]),
        (CIFAR100, ["  cifar-100-python: train, test, meta\n", "  cifar100: train-00000"]),
    ],
)
def test_the_error_for_missing_images_lists_the_expected_files(tmp_path, kind, parts):
    message = rf"{kind.title} was not found in {tmp_path}\. Expected one of these folders, or its files:"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        kind(data_dir=tmp_path).read()
    assert all(part in str(caught.value) for part in parts)
    assert "Set `datamodule.download=true`, or unpack https://www.cs.toronto.edu/~kriz/cifar-10" in str(caught.value)
    assert str(caught.value).endswith("into DIR and set `datamodule.data_dir=DIR`.")


def test_what_an_incomplete_folder_lacks_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_pickles(folder)
    (folder / "data_batch_3").unlink()
    (folder / "batches.meta").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} lacks data_batch_3, batches.meta.\n")):
        CIFAR10(data_dir=tmp_path).read()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            CIFAR10,
            {"data_dir": None},
            "CIFAR-10 needs `datamodule.data_dir=DIR`, the folder that contains cifar-10-batches-py or plain_text.",
        ),
        (
            CIFAR100,
            {"data_dir": None},
            "CIFAR-100 needs `datamodule.data_dir=DIR`, the folder that contains cifar-100-python or cifar100.",
        ),
        (CIFAR10, {"labels": "wors"}, "unknown datamodule.labels 'wors'. Did you mean 'worse'?"),
        (CIFAR10, {"labels": "noisy"}, "unknown datamodule.labels 'noisy'."),
        (CIFAR100, {"labels": "worse"}, "There are: clean, noisy."),
        (CIFAR10, {"split": "odd_even"}, "unknown datamodule.split 'odd_even'. Did you mean 'even_odd'?"),
        (
            CIFAR10,
            {"split": None},
            "`datamodule.split=null` needs `datamodule.holdout_size`, the number of training images to hold out.",
        ),
        (CIFAR100, {"groups": "superclas"}, "unknown datamodule.groups 'superclas'. Did you mean 'superclass'"),
    ],
)
def test_options_that_do_not_exist_are_refused_at_construction(kind, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**{"data_dir": "data", **options})


# download


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The archives and human labels of both data sets, as their publishers pack them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    for name, write_release in (("10-batches-py", write_pickles), ("100-python", write_pickles_100)):
        write_release(served / f"cifar-{name}")
        with tarfile.open(served / f"cifar-{name.split('-')[0]}-python.tar.gz", "w:gz", compresslevel=1) as file:
            file.add(served / f"cifar-{name}", f"cifar-{name}")
    write_human(served / "CIFAR-10_human.pt", HUMAN_10)
    write_human(served / "CIFAR-100_human.pt", human_labels(LABELS_100[:200], ["noisy_label"]))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def served_by(kind, served, url):
    """The class with the server's addresses and checksums."""
    archive, human = kind.archive_url.rsplit("/", 1)[1], kind.human_files[0]
    return type(
        kind.__name__,
        (kind,),
        {
            "archive_url": f"{url}/{archive}",
            "archive_md5": hashlib.md5((served / archive).read_bytes()).hexdigest(),
            "human_url": f"{url}/{human}",
            "human_sha256": hashlib.sha256((served / human).read_bytes()).hexdigest(),
        },
    )


@pytest.mark.parametrize(("kind", "labels", "pixels"), [(CIFAR10, "worse", PIXELS), (CIFAR100, "noisy", PIXELS_100)])
def test_what_is_missing_is_downloaded_and_then_read_without_a_server(server, tmp_path, kind, labels, pixels):
    module = served_by(kind, *server)
    data_dir = tmp_path / "data"
    raw = module(data_dir=data_dir, download=True).read()
    assert np.array_equal(raw.input.numpy(), pixels)
    folder, archive = kind.layouts[0].folder, kind.archive_url.rsplit("/", 1)[1]
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([folder, archive])
    raw = module(data_dir=data_dir, download=True, labels=labels).read()
    assert int((raw.noisy_target != raw.target).sum()) == {"worse": 50, "noisy": 10}[labels]
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([folder, archive, kind.human_files[0]])
    offline = kind(data_dir=data_dir, labels=labels).read()
    assert torch.equal(offline.noisy_target, raw.noisy_target)


def test_an_archive_that_is_there_is_unpacked(server, tmp_path):
    served, url = server
    module = served_by(CIFAR10, served, url)
    module.archive_url = "http://127.0.0.1:9/cifar-10-python.tar.gz"
    write(tmp_path / "data" / "cifar-10-python.tar.gz", (served / "cifar-10-python.tar.gz").read_bytes())
    raw = module(data_dir=tmp_path / "data", download=True).read()
    assert np.array_equal(raw.input.numpy(), PIXELS)


def test_another_archive_is_refused(server, tmp_path):
    module = served_by(CIFAR10, *server)
    module.archive_md5 = CIFAR10.archive_md5
    with pytest.raises(ValueError, match=f"returned an unexpected file.*; expected {CIFAR10.archive_md5}"):
        module(data_dir=tmp_path / "data", download=True).read()
    assert list((tmp_path / "data").iterdir()) == []


def test_nothing_is_downloaded_unasked(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 was not found in"):
        served_by(CIFAR10, *server)(data_dir=tmp_path / "data").read()
    assert not (tmp_path / "data").exists()


# configuration


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_the_yaml_is_the_published_setting(name, kind):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        config = compose(f"datamodule/{name}", overrides=["datamodule.data_dir=data"]).datamodule
        plain = compose(f"datamodule/{name}", overrides=["datamodule.data_dir=data", "datamodule.augment=null"])
    module = instantiate(config)
    assert type(module) is kind
    assert (module.labels, module.split, module.holdout_size, module.download) == ("clean", "even_odd", None, False)
    white = module.preprocess(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert white[:, :, 0, 0].tolist() == [[-1.0] * 3, [1.0] * 3]
    assert (module.augment.crop_padding, module.augment.flip) == (4, True)
    assert instantiate(plain.datamodule).augment is None
    if kind is CIFAR100:
        assert module.groups == "superclass"


# the real files

needs_files = pytest.mark.skipif(
    DATA_DIR is None or not (Path(DATA_DIR) / "cifar10").is_dir(),
    reason="set REDUCR_DATA_DIR to the folder that holds cifar10 (the WebP sheets and labels.npz) and cifar_n",
)
# of data_batch_1 to data_batch_5, test_batch and batches.meta, as published
ORIGINAL_MD5 = (
    "c99cafc152244af753f735de768cd75f",
    "d4bba439e000b95fd0a9bffe97cbabec",
    "54ebc095f3ab1f0389bbae665268c751",
    "634d18415352ddfa80567beed471001a",
    "482c414d41f54cd18b22e5b47cb7c3cb",
    "40351d587109b95175f43aff81a1287e",
    "5ff9c542aee3614f3951f8cda6e48888",
)


class Real(CIFAR10):
    """Reads the files once for all tests."""

    layouts = tuple(replace(layout, read=cache(layout.read)) for layout in CIFAR10.layouts)


@pytest.fixture(scope="module")
def real_dir(tmp_path_factory):
    """The real files in their published layout."""
    folder = tmp_path_factory.mktemp("real")
    yield convert(Path(DATA_DIR), folder)
    shutil.rmtree(folder)


@needs_files
def test_the_real_files_have_the_published_counts(real_dir):
    raw = Real(data_dir=real_dir).read()
    assert raw.input.shape == (60_000, 3, 32, 32)
    assert torch.bincount(raw.target[:50_000]).tolist() == [5000] * 10
    assert torch.bincount(raw.target[50_000:]).tolist() == [1000] * 10
    assert raw.class_names == NAMES
    assert [len(raw.parts[part]) for part in ("train", "holdout", "test")] == [25_000, 25_000, 10_000]
    assert raw.input[0, :, 0, 0].tolist() == [59, 62, 63]
    digest = hashlib.sha256(raw.input[0].numpy().tobytes()).hexdigest()
    assert digest == "e052de7deb775f78e5e3b718032db5e72434ae6f0d34152c7ad434521631b17c"


@needs_files
@pytest.mark.parametrize("data_dir", [".", "cifar-10-batches-py"])
@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ("clean", 0.0),
        ("aggre", 0.0901),
        ("random1", 0.1723),
        ("random2", 0.1812),
        ("random3", 0.1764),
        ("worse", 0.4021),
    ],
)
def test_the_real_human_labels_have_the_published_noise(labels, share, data_dir, real_dir):
    raw = Real(data_dir=real_dir / data_dir, labels=labels).read()
    noisy = raw.target if raw.noisy_target is None else raw.noisy_target
    is_wrong = (noisy != raw.target)[:50_000]
    assert float(is_wrong.double().mean()) == pytest.approx(share, abs=5e-5)
    assert torch.equal(noisy[50_000:], raw.target[50_000:])


@needs_files
@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_both_real_files_of_human_labels_say_the_same(kind):
    saved, packed = (Path(DATA_DIR) / "cifar_n" / name for name in kind.human_files)
    assert hashlib.sha256(saved.read_bytes()).hexdigest() == kind.human_sha256
    contents = read_human_labels(saved)
    with np.load(packed) as expected:
        assert set(contents) == set(expected) >= {"clean_label", *kind.human_labels.values()}
        assert all(np.array_equal(contents[key], expected[key]) for key in expected)


@needs_files
def test_the_real_images_make_the_original_pickles_which_are_read_back(real_dir, tmp_path):
    raw = Real(data_dir=real_dir).read()
    names = (*BATCHES, "test_batch", "batches.meta")
    batches = [pickle.loads((real_dir / "cifar-10-batches-py" / name).read_bytes()) for name in names[:-1]]
    filenames = [name for batch in batches for name in batch["filenames"]]
    write_pickles(tmp_path, raw.input.numpy(), raw.target.tolist(), num_test=10_000, filenames=filenames)
    assert tuple(hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in names) == ORIGINAL_MD5
    original = CIFAR10(data_dir=tmp_path).read()
    assert torch.equal(original.input, raw.input)
    assert torch.equal(original.target, raw.target)
    assert original.class_names == raw.class_names
