import gzip
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from reducr.data.published.clothing1m import CLASS_NAMES, Clothing1M

DATA_DIR = os.environ.get("REDUCR_DATA_DIR")
LISTS = ("noisy_train", "clean_train", "clean_val", "clean_test")


def label_of(key):
    """The label that a made key has in the clean list."""
    return int(key.rsplit("/", 1)[1].split(",")[0]) % 14


def made_keys(start, num_keys):
    """Keys as in the release: two levels of folders, and two ids with a comma between."""
    return [f"images/{place % 10}/{place % 100:02}/{place},{7 * place}.jpg" for place in range(start, start + num_keys)]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_image(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (10 * label, 0, 0)).save(path, format="PNG")


def release():
    """Lines of all lists, by name: 140 noisy, 70 clean training, 42 validation and 28 test images.

    The noisy label is the clean one plus one for every second image; some clean images have a noisy label too.
    """
    keys = {
        "noisy_train": made_keys(0, 140),
        "clean_train": made_keys(140, 70),
        "clean_val": made_keys(210, 42),
        "clean_test": made_keys(252, 28),
    }
    noisy = [*keys["noisy_train"], *keys["clean_train"][:20]]
    clean = [key for name in LISTS[1:] for key in keys[name]]
    return {f"{name}_key_list.txt": keys[name] for name in LISTS} | {
        "noisy_label_kv.txt": [f"{key} {noisy_label(key)}" for key in noisy],
        "clean_label_kv.txt": [f"{key} {label_of(key)}" for key in clean],
    }


def noisy_label(key):
    place = int(key.rsplit("/", 1)[1].split(",")[0])
    return (label_of(key) + place // 14 % 2) % 14


def write_release(folder, lists, *, place=".", suffix=""):
    for name, lines in lists.items():
        write(folder / place / f"{name}{suffix}", lines)
    for name in LISTS:
        for key in lists.get(f"{name}_key_list.txt", []):
            write_image(folder / key, label_of(key))


def make(folder, **options):
    return Clothing1M(data_dir=folder, **{"irreducible_size": 100, "image_size": 4, "resize": None, **options})


def keys_of(module, raw, part):
    """The keys of a part's images, which the pool's files tell."""
    return [Path(raw.input.paths[place]).relative_to(module.data_dir).as_posix() for place in raw.parts[part]]


@pytest.mark.parametrize(("place", "suffix"), [(".", ""), ("annotations", ".gz")])
def test_the_published_parts_are_found_and_made_disjoint(tmp_path, place, suffix):
    lists = release()
    write_release(tmp_path, lists, place=place, suffix=suffix)
    module = make(tmp_path)
    raw = module.read()
    keys = {part: keys_of(module, raw, part) for part in raw.parts}
    assert keys["holdout"] == lists["clean_val_key_list.txt"]
    assert keys["test"] == lists["clean_test_key_list.txt"]
    assert len(keys["irreducible"]) == 100
    # a draw from all three lists; its noisy images, and no others, are not trained on
    drawn = set(keys["irreducible"])
    for name in ("noisy_train", "clean_train", "clean_val"):
        assert 0 < len(drawn.intersection(lists[f"{name}_key_list.txt"])) < len(lists[f"{name}_key_list.txt"])
    assert drawn.isdisjoint(keys["test"])
    assert keys["train"] == [key for key in lists["noisy_train_key_list.txt"] if key not in drawn]
    assert raw.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 14
    assert raw.has_clean_targets is False


def test_training_images_have_noisy_and_all_others_clean_labels(tmp_path):
    lists = release()
    write_release(tmp_path, lists)
    module = make(tmp_path)
    raw = module.read()
    noisy_keys = set(lists["noisy_train_key_list.txt"])
    for part in raw.parts:
        labels = [noisy_label(key) if key in noisy_keys else label_of(key) for key in keys_of(module, raw, part)]
        assert raw.target[raw.parts[part]].tolist() == labels
    splits = module.splits(seed=0)
    wrong = splits.train.target != splits.train.input[:, 0, 0, 0] // 10
    assert 0.3 < float(wrong.double().mean()) < 0.7
    assert splits.train.is_corrupted is None
    for part in (splits.holdout, splits.test):
        assert torch.equal(part.target, part.input[:, 0, 0, 0].long() // 10)


def test_the_draw_is_that_of_its_seed_alone(tmp_path):
    write_release(tmp_path, release())
    first, again, other = (
        set(keys_of(module, module.read(), "irreducible"))
        for module in (make(tmp_path), make(tmp_path), make(tmp_path, irreducible_seed=1))
    )
    assert first == again != other
    module = make(tmp_path)
    sources = [module.splits(seed=seed).irreducible.source for seed in (0, 1)]
    assert torch.equal(*sources)


def test_without_a_draw_irreducible_models_have_the_holdout_part(tmp_path):
    lists = release()
    del lists["clean_train_key_list.txt"]
    write_release(tmp_path, lists)
    splits = make(tmp_path, irreducible_size=None).splits(seed=0)
    assert splits.irreducible is splits.holdout
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [140, 42, 28]


def test_training_lists_may_overlap(tmp_path):
    lists = release()
    lists["clean_train_key_list.txt"][:20] = lists["noisy_train_key_list.txt"][:20]
    lists["clean_label_kv.txt"] += [f"{key} {label_of(key)}" for key in lists["noisy_train_key_list.txt"][:20]]
    write_release(tmp_path, lists)
    module = make(tmp_path)
    raw = module.read()
    drawn = set(keys_of(module, raw, "irreducible"))
    shared = lists["noisy_train_key_list.txt"][:20]
    label = dict(zip(keys_of(module, raw, "irreducible"), raw.target[raw.parts["irreducible"]].tolist(), strict=True))
    label |= dict(zip(keys_of(module, raw, "train"), raw.target[raw.parts["train"]].tolist(), strict=True))
    assert [label[key] for key in shared] == [label_of(key) if key in drawn else noisy_label(key) for key in shared]
    assert 0 < len(drawn.intersection(shared)) < 20


def test_keys_may_begin_with_a_dot_in_some_lists(tmp_path):
    lists = release()
    lists["clean_val_key_list.txt"] = [f"./{key}" for key in lists["clean_val_key_list.txt"]]
    lists["noisy_label_kv.txt"] = [f"./{line}" for line in lists["noisy_label_kv.txt"]]
    write_release(tmp_path, lists)
    module = make(tmp_path)
    raw = module.read()
    assert keys_of(module, raw, "holdout") == release()["clean_val_key_list.txt"]
    assert raw.target[raw.parts["holdout"]].tolist() == [label_of(key) for key in release()["clean_val_key_list.txt"]]


def test_class_names_are_those_of_the_release_where_it_has_them(tmp_path):
    write_release(tmp_path, release() | {"category_names_eng.txt": [f"class {number}" for number in range(14)]})
    assert make(tmp_path).read().class_names == tuple(f"class {number}" for number in range(14))
    write(tmp_path / "category_names_eng.txt", ["Dress", "Vest"])
    with pytest.raises(ValueError, match=r"must have 14 lines, one class name each; it has 2\."):
        make(tmp_path).read()


def test_images_are_resized_to_256_and_cut_to_224_by_default(tmp_path):
    write_release(tmp_path, release())
    module = Clothing1M(data_dir=tmp_path, irreducible_size=None)
    assert (module.image_size, module.resize, module.hold) == (224, 256, "stream")
    assert module.read().input[torch.tensor([0, 5])].shape == (2, 3, 224, 224)
    assert Clothing1M(data_dir=tmp_path).irreducible_size == 100_000


@pytest.mark.parametrize("name", list(release()))
def test_a_missing_list_is_named_with_whom_to_ask(tmp_path, name):
    lists = release()
    del lists[name]
    write_release(tmp_path, lists)
    with pytest.raises(FileNotFoundError) as caught:
        make(tmp_path).read()
    folders = f"{tmp_path} or {tmp_path / 'annotations'}"
    assert f"Clothing1M has no {name} (or .gz) in {folders}." in str(caught.value)
    assert "github.com/Cysu/noisy_label" in str(caught.value)
    assert "datamodule.data_dir=DIR" in str(caught.value)


def overlap(lists):
    lists["clean_test_key_list.txt"][:3] = lists["noisy_train_key_list.txt"][:3]
    return "The lists noisy_train and clean_test must be disjoint; they share 3 keys, such as images/0/00/0,0.jpg."


def overlap_of_clean(lists):
    lists["clean_train_key_list.txt"] += lists["clean_val_key_list.txt"][:2]
    return "must be disjoint; they share 2 keys, such as images/0/10/210,1470.jpg."


def repeat(lists):
    lists["clean_val_key_list.txt"] += lists["clean_val_key_list.txt"][4:6]
    return "clean_val_key_list.txt repeats keys in 2 of its 44 lines; the first is images/4/14/214,"


def forget_labels(lists):
    del lists["noisy_label_kv.txt"][5:8]
    return "noisy_label_kv.txt lacks labels for 3 of the 140 keys of noisy_train; the first is images/5/05/5,35.jpg."


def label_too_large(lists):
    lists["clean_label_kv.txt"][0] = "images/1/01/1,1.jpg 14"
    return "each line must be a key, a blank and a label in 0..13; got 'images/1/01/1,1.jpg 14'."


def label_negative(lists):
    lists["clean_label_kv.txt"][0] = "images/1/01/1,1.jpg -1"
    return "each line must be a key, a blank and a label in 0..13; got 'images/1/01/1,1.jpg -1'."


def label_missing(lists):
    lists["clean_label_kv.txt"][0] = "images/1/01/1,1.jpg"
    return "each line must be a key, a blank and a label in 0..13; got 'images/1/01/1,1.jpg'."


def two_labels(lists):
    lists["clean_label_kv.txt"] += [lists["clean_label_kv.txt"][0].rsplit(" ", 1)[0] + " 5"]
    return "gives images/0/40/140,980.jpg two labels, 0 and 5."


def outside(lists):
    lists["clean_val_key_list.txt"][3] = "images/../../private.jpg"
    return "clean_val_key_list.txt names 'images/../../private.jpg', which is outside of the data set."


def absolute(lists):
    lists["noisy_train_key_list.txt"][0] = "/etc/private.jpg"
    return "noisy_train_key_list.txt names '/etc/private.jpg', which is outside of the data set."


@pytest.mark.parametrize(
    "change",
    [
        overlap, overlap_of_clean, repeat, forget_labels, label_too_large, label_negative, label_missing, two_labels,
        outside, absolute,
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(tmp_path, change):
    lists = release()
    message = change(lists)
    for name, lines in lists.items():
        write(tmp_path / name, lines)
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tmp_path).read()


def test_a_truncated_list_is_named(tmp_path):
    write_release(tmp_path, release(), suffix=".gz")
    path = tmp_path / "clean_label_kv.txt.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=re.escape(f"{path} is truncated or damaged (")):
        make(tmp_path).read()


def test_missing_images_are_an_error_or_left_out(tmp_path):
    lists = release()
    write_release(tmp_path, lists)
    for key in lists["clean_val_key_list.txt"][:2]:
        (tmp_path / key).unlink()
    with pytest.raises(ValueError, match=r"^2 of \d+ images cannot be read; the first is .* \(No such file .*\)"):
        make(tmp_path).read()
    module = make(tmp_path, unreadable="skip")
    raw = module.read()
    assert keys_of(module, raw, "holdout") == lists["clean_val_key_list.txt"][2:]
    assert raw.notes[0].startswith("Skipped 2 of ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"irreducible_size": 0},
            "datamodule.irreducible_size must be a whole number of at least 1; got 0.",
        ),
        (
            {"irreducible_size": None, "irreducible_seed": 1},
            "`datamodule.irreducible_seed=1` has no effect: nothing is drawn with `datamodule.irreducible_size=null`.",
        ),
        ({"irreducible_size": 0.5}, "datamodule.irreducible_size must be a whole number of at least 1; got 0.5."),
        (
            {"irreducible_size": 253},
            "`datamodule.irreducible_size` must be at most 252, the number of images to draw from; got 253.",
        ),
        (
            {"data_dir": None},
            "Clothing1M needs `datamodule.data_dir=DIR`, the folder that contains images and",
        ),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    write_release(tmp_path, release())
    with pytest.raises(ValueError, match=re.escape(message)):
        make(options.pop("data_dir", tmp_path), **options).read()


@pytest.mark.long
@pytest.mark.skipif(DATA_DIR is None, reason="REDUCR_DATA_DIR is not set: no folder with the real files")
def test_the_real_lists_are_read_whole(tmp_path):
    for path in (Path(DATA_DIR) / "clothing1m_lists").glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    # noisy lists in the format of the real ones, 2,000 keys, and one image for each class under all names
    noisy = [f"./data/clothing1M/noisy_train/{place % 14}/{place},{place}.jpg" for place in range(2000)]
    write(tmp_path / "noisy_train_key_list.txt", noisy)
    write(tmp_path / "noisy_label_kv.txt", [f"{key} {place % 14}" for place, key in enumerate(noisy)])
    with gzip.open(tmp_path / "clean_label_kv.txt.gz", "rt") as file:
        clean = [line.split(" ") for line in file.read().splitlines()]
    assert len(clean) == 24_839
    for label in range(14):
        write_image(tmp_path / f"{label}.jpg", label)
    for key, label in [*clean, *((key, place % 14) for place, key in enumerate(noisy))]:
        path = tmp_path / key
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        path.hardlink_to(tmp_path / f"{label}.jpg")
    splits = make(tmp_path, irreducible_size=None).splits(seed=0)
    counts = {name: torch.bincount(part.target).tolist() for name, part in splits.by_name().items()}
    assert counts["holdout"] == [1221, 891, 735, 1562, 1259, 1147, 785, 435, 1362, 1021, 704, 944, 1145, 1102]
    assert counts["test"] == [845, 636, 527, 1171, 918, 824, 558, 297, 1017, 727, 523, 686, 946, 851]
    assert (sum(counts["train"]), sum(counts["holdout"]), sum(counts["test"])) == (2000, 14_313, 10_526)
    for part in splits.by_name().values():
        batch = part.batch(torch.arange(0, len(part), 97))
        assert torch.equal(batch.input[:, 0, 0, 0], (10 * batch.target).to(torch.uint8))


def test_a_class_that_the_irreducible_models_would_not_see_is_named(tmp_path):
    write_release(tmp_path, release())
    expected = r"every class needs at least one example for the reference models; '.*' of 14 has none"
    with pytest.raises(ValueError, match=expected):
        make(tmp_path, irreducible_size=10).splits(seed=0)
