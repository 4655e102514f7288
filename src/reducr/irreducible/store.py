"""Tables on disk: the values, and a manifest that says what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reducr._internal.files import file_checksum, replaced_atomically, write_text_atomically
from reducr.irreducible.fingerprint import DataFingerprint
from reducr.irreducible.table import IrreducibleTable

_FORMAT = 1


def save_table(
    folder: Path,
    table: IrreducibleTable,
    *,
    fingerprint: DataFingerprint,
    settings: Mapping[str, Any],
    sources: Mapping[str, str],
) -> None:
    """Write ``values.npy`` and ``manifest.json`` into ``folder``; the manifest last, so it vouches for the values.

    Args:
        folder: made if needed; must not hold a table yet.
        table: what to write.
        fingerprint: of the data set that the rows belong to.
        settings: how the table was made (gradient weight, epochs, ...), plain values.
        sources: the checkpoints it was made from, name to SHA-256.

    Raises:
        ValueError: if the folder holds a table already, or the table has not one row for each point.
    """
    if (folder / "manifest.json").exists():
        raise ValueError(f"{folder} already holds a table; it is never overwritten. Choose another folder.")
    if len(table) != fingerprint.length:
        raise ValueError(f"the table has {len(table)} rows, the data {fingerprint.length} points.")
    values = folder / "values.npy"
    with replaced_atomically(values) as temporary, temporary.open("wb") as file:
        np.save(file, table.values)
    manifest = {
        "format": _FORMAT,
        "kind": table.kind,
        "shape": list(table.values.shape),
        "dtype": str(table.values.dtype),
        "values_checksum": file_checksum(values),
        "data_fingerprint": fingerprint.to_dict(),
        "settings": dict(settings),
        "sources": dict(sources),
    }
    write_text_atomically(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def load_table(
    folder: Path,
    *,
    fingerprint: DataFingerprint,
    settings: Mapping[str, Any] | None = None,
    verify_checksum: bool = True,
) -> IrreducibleTable:
    """The table in ``folder``, memory-mapped, if it belongs to the data.

    Args:
        folder: where ``save_table`` wrote it.
        fingerprint: of the data set at hand.
        settings: those of ``save_table`` that must be as given here; None for any.
        verify_checksum: read the whole values file once to see that it is as written; switch off for tables that
            take long to read.

    Raises:
        FileNotFoundError: if there is no table; says where it looked and how to make one.
        ValueError: if the table is of other data or settings, truncated or altered; says which table and why.
    """
    manifest_path, values_path = folder / "manifest.json", folder / "values.npy"
    for path in (manifest_path, values_path):
        if not path.exists():
            raise FileNotFoundError(
                f"no irreducible table in {folder}: {path.name} is missing. Build one with `reducr irreducible` and "
                "give its folder."
            )
    manifest = _read_manifest(manifest_path)
    differences = DataFingerprint.from_dict(manifest["data_fingerprint"]).differences(fingerprint)
    if differences:
        raise ValueError(
            f"irreducible table {folder} does not belong to this data: {'; '.join(differences)}. Use the data, seed "
            "and options it was built with, or build a table for this data with `reducr irreducible`."
        )
    made_with = manifest.get("settings", {})
    for name, value in (settings or {}).items():
        if made_with.get(name) != value:
            raise ValueError(
                f"irreducible table {folder} was made with {name}={made_with.get(name)}; this run has {name}={value}. "
                "Use the same value, or build a table with this one."
            )
    if verify_checksum and file_checksum(values_path) != manifest["values_checksum"]:
        raise ValueError(
            f"irreducible table {folder} is damaged: values.npy is not the file its manifest describes (truncated or "
            "altered). Build it again."
        )
    try:
        values = np.load(values_path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"irreducible table {folder} is damaged: values.npy cannot be read ({error}). Build it again."
        ) from error
    if list(values.shape) != manifest["shape"] or str(values.dtype) != manifest["dtype"]:
        raise ValueError(
            f"irreducible table {folder} is damaged: values.npy holds {values.dtype} {values.shape}, the manifest says "
            f"{manifest['dtype']} {tuple(manifest['shape'])}. Build it again."
        )
    return IrreducibleTable(values, kind=manifest["kind"])


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with every entry that a table of this format has."""
    folder = path.parent
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"irreducible table {folder} is damaged: its manifest cannot be read ({error}). Build it again."
        ) from error
    if manifest.get("format") != _FORMAT:
        raise ValueError(
            f"irreducible table {folder} has format {manifest.get('format')!r}; this version reads format {_FORMAT}. "
            "Build it again."
        )
    missing = {"kind", "shape", "dtype", "values_checksum", "data_fingerprint"} - manifest.keys()
    if missing:
        raise ValueError(
            f"irreducible table {folder} is damaged: its manifest lacks {', '.join(sorted(missing))}. Build it again."
        )
    return manifest
