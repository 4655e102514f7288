import contextlib
import os
import re
import socket

import pytest
import torch
from PIL import Image

from reducr.data.own.image_folder import ImageFolder


def write(path, brightness=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (brightness,) * 3).save(path)
    return path


def write_classes(folder, sizes, start=0):
    """``sizes[c]`` images of each class c, their brightness counting up from ``start``."""
    for name, size in sizes.items():
        for number in range(size):
            write(folder / name / f"{number:02}.png", start)
            start += 1


def read(folder, **options):
    return ImageFolder(data_dir=folder, image_size=4, **options).read()


def brightness(raw, positions=None):
    return raw.input[torch.arange(len(raw.target)) if positions is None else positions][:, 0, 0, 0].tolist()


def test_a_folder_for_each_class(tmp_path):
    write_classes(tmp_path, {"dog": 3, "Ant": 2, "cat": 4})
    raw = read(tmp_path)
    assert raw.class_names == ("Ant", "cat", "dog")
    assert raw.target.tolist() == [0] * 2 + [1] * 4 + [2] * 3
    assert brightness(raw) == [3, 4, 5, 6, 7, 8, 0, 1, 2]
    assert dict(raw.parts) == {}
    assert raw.has_clean_targets is False
    assert raw.notes == ()


def test_parts_without_a_folder_are_drawn(tmp_path):
    write_classes(tmp_path, {"cat": 20, "dog": 10})
    splits = ImageFolder(data_dir=str(tmp_path), image_size=4, holdout_size=6, test_size=0.2).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [18, 6, 6]
    assert torch.bincount(splits.holdout.target).tolist() == [4, 2]
    seen = torch.cat([part.input[:, 0, 0, 0] for part in (splits.train, splits.holdout, splits.test)])
    assert sorted(seen.tolist()) == list(range(30))
    assert splits.train.is_corrupted is None


@pytest.mark.parametrize("name", ["holdout", "valid", "val"])
def test_parts_with_a_folder_are_kept(tmp_path, name):
    write_classes(tmp_path / "test", {"cat": 1, "dog": 1}, start=50)
    write_classes(tmp_path / name, {"cat": 2, "dog": 1}, start=30)
    write_classes(tmp_path / "train", {"dog": 2, "cat": 3})
    raw = read(tmp_path)
    assert raw.class_names == ("cat", "dog")
    assert brightness(raw, raw.parts["train"]) == [2, 3, 4, 0, 1]
    assert brightness(raw, raw.parts["holdout"]) == [30, 31, 32]
    assert brightness(raw, raw.parts["test"]) == [50, 51]
    assert raw.target.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(("name", "drawn"), [("val", "test"), ("test", "holdout")])
def test_a_part_without_a_folder_is_drawn_beside_those_with_one(tmp_path, name, drawn):
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path / name, {"cat": 10, "dog": 10}, start=100)
    splits = ImageFolder(data_dir=tmp_path, image_size=4, **{f"{drawn}_size": 4}).splits(seed=0)
    assert len(splits.by_name()[drawn]) == 4
    assert sum(len(part) for part in splits.by_name().values()) == 40


def test_a_file_in_two_parts_is_refused_or_dropped(tmp_path):
    for part, start in (("train", 0), ("val", 10), ("test", 20)):
        write_classes(tmp_path / part, {"cat": 3, "dog": 3}, start=start)
    copied = [("train/cat/00.png", "test/dog/09.png"), ("val/cat/01.png", "test/cat/08.png")]
    for source, target in copied:
        (tmp_path / target).write_bytes((tmp_path / source).read_bytes())
    with pytest.raises(ValueError, match=r"^1 of 6 images of the training part have .*train/cat/00\.png\. Set `"):
        read(tmp_path)
    raw = read(tmp_path, overlap="drop")
    assert brightness(raw, raw.parts["train"]) == [1, 2, 3, 4, 5]
    assert brightness(raw, raw.parts["holdout"]) == [10, 12, 13, 14, 15]
    assert brightness(raw, raw.parts["test"]) == [20, 21, 22, 11, 23, 24, 25, 0]
    assert len(raw.notes) == 2
    assert len(read(tmp_path, overlap="allow").target) == 20
    with pytest.raises(ValueError, match=r"unknown datamodule\.overlap 'dropp'\. Did you mean 'drop'"):
        read(tmp_path, overlap="dropp")


def test_the_same_image_is_drawn_into_one_part(tmp_path):
    write_classes(tmp_path, {"cat": 20, "dog": 20})
    for number in range(5):
        write(tmp_path / "dog" / f"again {number}.png", 20 + number)
    for seed in range(5):
        splits = ImageFolder(data_dir=tmp_path, image_size=4).splits(seed=seed)
        seen = [set(part.input[:, 0, 0, 0].tolist()) for part in (splits.train, splits.holdout, splits.test)]
        assert sum(map(len, seen)) == 40
        assert splits.notes == ()


def test_images_of_every_kind_and_depth_count_and_nothing_else_does(tmp_path):
    names = ["z.png", "b/deep/er/1.jpg", "a/1.JPEG", "c.webp", "d.bmp", "e.tif", "f.TIFF", "g.gif"]
    for number, name in enumerate(names):
        write(tmp_path / "cat" / name, 10 * number)
    write(tmp_path / "dog" / "1.png", 200)
    for name in ("cat/readme.txt", "cat/._z.png", "cat/.hidden/1.png", ".cache/1.png", "labels.csv", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    raw = read(tmp_path)
    assert raw.class_names == ("cat", "dog")
    # in the order of paths: a/1, b/deep/er/1, c, d, e, f, g, z
    assert brightness(raw) == [20, 10, 30, 40, 50, 60, 70, 0, 200]


def test_links_may_stand_for_the_data_set_a_part_and_a_class(tmp_path):
    write_classes(tmp_path / "elsewhere", {"cats": 2, "dogs": 1})
    write_classes(tmp_path / "data" / "train", {"dog": 1}, start=9)
    (tmp_path / "data" / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "elsewhere" / "test" / "cat").mkdir(parents=True)
    write_classes(tmp_path / "elsewhere" / "test", {"cat": 1, "dog": 1}, start=20)
    (tmp_path / "data" / "test").symlink_to("../elsewhere/test")
    (tmp_path / "link").symlink_to("data")
    raw = read(tmp_path / "link")
    assert brightness(raw) == [0, 1, 9, 20, 21]
    assert raw.target.tolist() == [0, 0, 1, 0, 1]
    cats = f"{tmp_path / 'link' / 'train' / 'cat'} are those of {tmp_path / 'elsewhere' / 'cats'}, its target"
    assert any(cats in note for note in raw.notes)


def loop(folder):
    (folder / "cat" / "loop").symlink_to("..")


def loop_to_the_class(folder):
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "deep" / "loop").symlink_to(folder / "cat")


def loop_of_two(folder):
    for name, other in (("a", "b"), ("b", "a")):
        (folder / "cat" / name).mkdir()
        (folder / "cat" / name / "link").symlink_to(f"../{other}")


def loop_as_a_class(folder):
    (folder / "loop").symlink_to(".")


def loop_around(folder):
    (folder / "cat" / "loop").symlink_to("/")


def another_class(folder):
    (folder / "cat" / "more").symlink_to("../dog")


def class_twice(folder):
    (folder / "puppy").symlink_to("dog")


def folder_outside(folder):
    outside = folder.parents[1] / "outside"
    write_classes(outside, {"cats": 3}, start=50)
    (folder / "cat" / "more").symlink_to(outside)


def file_outside(folder):
    (folder / "cat" / "more.png").symlink_to(write(folder.parents[1] / "outside" / "private.png", 50))


LINKS = [
    loop, loop_to_the_class, loop_of_two, loop_as_a_class, loop_around, another_class, class_twice, folder_outside,
    file_outside,
]  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("is_split", [False, True], ids=["classes", "parts"])
def test_a_link_mislabels_no_image(tmp_path, link, is_split):
    """A link to ``..`` in a class gave each image 41 times, half of them under the wrong class."""
    data = tmp_path / "my" / "data"
    folder = data / "train" if is_split else data
    write_classes(folder, {"cat": 3, "dog": 2})
    link(folder)
    with pytest.raises(ValueError, match=r"symbolic link .* leads to .*`datamodule\.links=skip`") as caught:
        read(data)
    assert ("`datamodule.links=follow`" in str(caught.value)) == ("outside" in link.__name__)
    raw = read(data, links="skip")
    assert (brightness(raw), raw.target.tolist()) == ([0, 1, 2, 3, 4], [0, 0, 0, 1, 1])
    assert re.search(r"Left out \d symbolic links; the first is .*/data/", raw.notes[-1])
    followed = read(data, links="follow")
    extra = {folder_outside: [50, 51, 52], file_outside: [50]}.get(link, [])
    assert (sorted(brightness(followed)), followed.class_names) == ([0, 1, 2, 3, 4, *extra], ("cat", "dog"))
    assert (followed.target == 0).sum() == 3 + len(extra)


def test_a_link_to_a_file_of_the_data_set_is_a_file(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "cat" / "a.png").symlink_to("00.png")
    assert brightness(read(tmp_path)) == [0, 1, 0, 2]


def test_links_that_lead_nowhere_are_unreadable(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "cat" / "gone.png").symlink_to("gone/away.png")
    (tmp_path / "cat" / "itself.png").symlink_to("itself.png")
    with pytest.raises(ValueError, match=r"2 of 5 images cannot be read; the first is .*gone\.png"):
        read(tmp_path)
    assert brightness(read(tmp_path, unreadable="skip")) == [0, 1, 2]


def test_unknown_policies_for_links_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown datamodule\.links 'folow'\. Did you mean 'follow'"):
        ImageFolder(data_dir=tmp_path, links="folow")


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def link_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hold", ["memory", "stream"])
@pytest.mark.parametrize("make", [make_pipe, make_socket, link_device])
def test_what_is_no_regular_file_is_unreadable(tmp_path, make, hold):
    """Opening a pipe waited for ever."""
    write_classes(tmp_path, {"cat": 2, "dog": 2})
    make(tmp_path / "cat" / "01.png.png")
    options = {"hold": hold, "links": "follow"}
    with pytest.raises(ValueError, match=r"1 of 5 images cannot be read; the first is .*/cat/01\.png\.png"):
        read(tmp_path, **options)
    raw = read(tmp_path, unreadable="skip", **options)
    assert raw.target.tolist() == [0, 0, 1, 1]


def test_unreadable_images_are_skipped_with_a_note(tmp_path):
    write_classes(tmp_path, {"cat": 3, "dog": 2})
    (tmp_path / "cat" / "01.png").write_text("no image")
    raw = read(tmp_path, unreadable="skip")
    assert raw.target.tolist() == [0, 0, 1, 1]
    assert brightness(raw) == [0, 2, 3, 4]
    assert raw.notes == (f"Skipped 1 of 5 images that cannot be read; the first is {tmp_path / 'cat' / '01.png'}.",)


def loose_image(folder):
    write(folder / "a.png")
    return (
        f"{folder} has image files outside its class folders (1, the first is a.png). Move every image into the folder"
    )


def empty_class(folder):
    (folder / "bird").mkdir()
    return f"Class 'bird' has no images: {folder / 'bird'} has no file that ends in .png, .jpg,"


def class_of_other_files(folder):
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("none")
    return "Class 'bird' has no images"


def part_beside_classes(folder):
    write(folder / "test" / "cat" / "1.png")
    return f"{folder} contains the part folder test next to cat, dog. Move all class folders into"


@pytest.mark.parametrize("change", [loose_image, empty_class, class_of_other_files, part_beside_classes])
def test_a_folder_of_classes_that_is_none_is_refused(tmp_path, change):
    write_classes(tmp_path, {"cat": 2, "dog": 2})
    message = change(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path)


def class_missing(folder):
    write(folder / "val" / "cat" / "1.png")
    return "All parts must have the same classes; 'dog' is in the train part but not in the holdout part."


def class_unknown(folder):
    write_classes(folder / "test", {"cat": 1, "dog": 1, "emu": 1})
    return "All parts must have the same classes; 'emu' is in the test part but not in the train part."


def class_empty(folder):
    write(folder / "test" / "cat" / "1.png")
    (folder / "test" / "dog").mkdir()
    return f"Class 'dog' has no images: {folder / 'test' / 'dog'} has no file"


def two_holdout_folders(folder):
    write_classes(folder / "val", {"cat": 1, "dog": 1})
    write_classes(folder / "valid", {"cat": 1, "dog": 1})
    return "has more than one folder for the holdout part: train, valid, val. Keep one."


def no_train(folder):
    (folder / "train").rename(folder / "val")
    return f"{folder} contains val but no train, the folder of the training part."


def unsorted(folder):
    write(folder / "test" / "1.png")
    return f"{folder / 'test'} has image files outside its class folders (1, the first is 1.png)."


@pytest.mark.parametrize("change", [class_missing, class_unknown, class_empty, two_holdout_folders, no_train, unsorted])
def test_parts_that_do_not_fit_are_refused(tmp_path, change):
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    message = change(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path)


def test_a_class_may_be_called_like_a_part_within_a_part(tmp_path):
    write_classes(tmp_path / "train", {"bus": 2, "train": 2})
    assert read(tmp_path).class_names == ("bus", "train")


def test_one_class_is_not_enough(tmp_path):
    write_classes(tmp_path / "photos", {"cat": 2, "dog": 2})
    with pytest.raises(
        ValueError, match=r"needs at least two classes; the only class folder is 'photos'\. `datamodule\."
    ):
        read(tmp_path)


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"An image folder needs `datamodule\.data_dir=DIR`"):
        ImageFolder(data_dir=None)
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"There is no folder {tmp_path / 'none'}. Check `datamodule.")
    ):
        read(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no folders\. Expected one per class"):
        read(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'train'} has no folders")):
        read(tmp_path)
