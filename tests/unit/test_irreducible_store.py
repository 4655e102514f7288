import json
import re

import numpy as np
import pytest
import torch

from reducr.data import ExampleDataset
from reducr.irreducible import DataFingerprint, IrreducibleTable, load_table, save_table

NUM_EXAMPLES = 100


def make_data(*, order=None, targets=None, groups=None, size=NUM_EXAMPLES, shift=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_EXAMPLES, 3, generator=generator)
    target = torch.randint(0, 4, (NUM_EXAMPLES,), generator=generator) if targets is None else targets
    order = torch.arange(NUM_EXAMPLES) if order is None else order
    order = order[:size]
    return ExampleDataset(
        (inputs[order] + shift).to(dtype),
        target[order],
        num_classes=4,
        group=None if groups is None else groups[order],
        num_groups=None if groups is None else 4,
    )


@pytest.fixture
def table():
    values = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 4)).astype(np.float32)
    return IrreducibleTable(values, kind="logits")


@pytest.fixture
def folder(tmp_path, table):
    """A folder with an intact table."""
    folder = tmp_path / "tables" / "plain"
    save_table(
        folder,
        table,
        fingerprint=DataFingerprint.of(make_data()),
        settings={"gradient_weight": 10.0},
        sources={"model.ckpt": "ab12"},
    )
    return folder


def check_refused(folder, data, reason, **options):
    """Loading raises an error with the folder and the reason."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load_table(folder, fingerprint=DataFingerprint.of(data), **options)
    assert reason in str(caught.value)


@pytest.mark.parametrize("verify_checksum", [True, False])
def test_a_saved_table_is_loaded_memory_mapped(folder, table, verify_checksum):
    loaded = load_table(folder, fingerprint=DataFingerprint.of(make_data()), verify_checksum=verify_checksum)
    assert loaded.kind == "logits"
    assert isinstance(loaded.values, np.memmap)
    assert np.array_equal(loaded.values, table.values)
    rows = loaded.rows(torch.tensor([7, 2]))
    assert np.array_equal(rows.numpy(), table.values[[7, 2]])


def test_the_manifest_describes_the_table(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["kind"] == "logits"
    assert manifest["shape"] == [NUM_EXAMPLES, 4]
    assert manifest["dtype"] == "float32"
    assert manifest["settings"] == {"gradient_weight": 10.0}
    assert manifest["sources"] == {"model.ckpt": "ab12"}
    assert manifest["data_fingerprint"]["length"] == NUM_EXAMPLES
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "values.npy"]


def test_other_targets_are_refused(folder):
    targets = make_data().target.clone()
    targets[NUM_EXAMPLES // 2] = (targets[NUM_EXAMPLES // 2] + 1) % 4
    check_refused(folder, make_data(targets=targets), "the targets or their order differ")


def test_another_order_is_refused(folder):
    order = torch.arange(NUM_EXAMPLES).flip(0)
    check_refused(folder, make_data(order=order), "the inputs or their order differ")


def test_another_length_is_refused(folder):
    check_refused(folder, make_data(size=90), "it was built for 100 examples, the data has 90")


def test_other_inputs_are_refused(folder):
    check_refused(folder, make_data(shift=0.5), "the inputs or their order differ")


def test_inputs_of_another_type_are_refused(folder):
    check_refused(folder, make_data(dtype=torch.float64), "the inputs or their order differ")


def test_other_groups_are_refused(folder):
    groups = torch.zeros(NUM_EXAMPLES, dtype=torch.int64)
    check_refused(folder, make_data(groups=groups), "the groups or their order differ")


@pytest.mark.parametrize("verify_checksum", [True, False])
def test_truncated_values_are_refused(folder, verify_checksum):
    path = folder / "values.npy"
    path.write_bytes(path.read_bytes()[:-40])
    check_refused(folder, make_data(), "damaged", verify_checksum=verify_checksum)


def test_altered_values_are_refused(folder):
    path = folder / "values.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    check_refused(folder, make_data(), "damaged: the checksum of values.npy does not match its manifest")


@pytest.mark.parametrize(
    "values", [np.zeros((NUM_EXAMPLES, 3), dtype=np.float32), np.zeros((NUM_EXAMPLES, 4), dtype=np.float64)]
)
def test_values_of_another_shape_or_type_are_refused_without_the_checksum_too(folder, values):
    np.save(folder / "values.npy", values)
    check_refused(folder, make_data(), "damaged: values.npy holds", verify_checksum=False)


@pytest.mark.parametrize("name", ["manifest.json", "values.npy"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no irreducible table in .*: {name} is missing") as caught:
        load_table(folder, fingerprint=DataFingerprint.of(make_data()))
    assert str(folder) in str(caught.value)
    assert "Build one with `reducr irreducible`" in str(caught.value)


def test_a_truncated_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:60])
    check_refused(folder, make_data(), "manifest")


def test_a_manifest_without_its_checksum_is_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["values_checksum"]
    path.write_text(json.dumps(manifest))
    check_refused(folder, make_data(), "values_checksum")


def test_another_format_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    check_refused(folder, make_data(), "has format 2; this version reads format 1")


def test_an_existing_table_is_never_overwritten(folder, table):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = IrreducibleTable(table.values + 1, kind="logits")
    with pytest.raises(ValueError, match=r"already holds a table\. Tables are never overwritten") as caught:
        save_table(folder, other, fingerprint=DataFingerprint.of(make_data()), settings={}, sources={})
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_table_of_another_length_than_its_data_is_not_saved(tmp_path, table):
    with pytest.raises(ValueError, match="a table needs one row per example; got 100 rows for 90 examples"):
        save_table(tmp_path, table, fingerprint=DataFingerprint.of(make_data(size=90)), settings={}, sources={})
    assert list(tmp_path.iterdir()) == []


def test_values_without_a_manifest_after_a_crash_are_not_a_table_and_can_be_replaced(tmp_path, table):
    (tmp_path / "values.npy").write_bytes(b"half a table")
    fingerprint = DataFingerprint.of(make_data())
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        load_table(tmp_path, fingerprint=fingerprint)
    save_table(tmp_path, table, fingerprint=fingerprint, settings={}, sources={})
    assert np.array_equal(load_table(tmp_path, fingerprint=fingerprint).values, table.values)


def test_a_table_made_with_other_settings_is_refused(folder):
    loaded = load_table(folder, fingerprint=DataFingerprint.of(make_data()), settings={"gradient_weight": 10.0})
    assert loaded.kind == "logits"
    check_refused(
        folder, make_data(), "was made with gradient_weight=10.0; this run has", settings={"gradient_weight": 5.0}
    )
