"""Save and load tables: the values, and a manifest with the data and settings they were built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reducr._internal.files import (
    check_regular,
    file_checksum,
    read_regular_text,
    replaced_atomically,
    write_text_atomically,
)
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
    """Write ``values.npy`` and then ``manifest.json`` into ``folder``.

    The manifest comes last and holds a checksum of the values, so a table with a manifest is complete.

    Args:
        folder: created if needed; must not hold a table yet.
        table: the table to write.
        fingerprint: of the data set that the rows belong to.
        settings: how the table was built (gradient weight, epochs, ...), as plain values.
        sources: SHA-256 of each checkpoint it was built from, by name.

    Raises:
        ValueError: if the folder already holds a table, or the table does not have one row per example.
    """
    if (folder / "manifest.json").exists():
        raise ValueError(f"{folder} already holds a table. Tables are never overwritten; choose another folder.")
    if len(table) != fingerprint.length:
        raise ValueError(f"a table needs one row per example; got {len(table)} rows for {fingerprint.length} examples.")
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
    """Load the table in ``folder``, memory-mapped, and check that it belongs to the data.

    Args:
        folder: the folder given to ``save_table``.
        fingerprint: of the current data set.
        settings: settings that the table must have been built with; None accepts any.
        verify_checksum: read the whole file once to verify its checksum; set to False if that takes too long.

    Raises:
        FileNotFoundError: if there is no table.
        ValueError: if the table belongs to other data or settings, or is truncated or altered.
    """
    manifest_path, values_path = folder / "manifest.json", folder / "values.npy"
    for path in (manifest_path, values_path):
        if not path.exists():
            raise FileNotFoundError(
                f"no irreducible table in {folder}: {path.name} is missing. Build one with `reducr irreducible` and "
                "pass its folder."
            )
    manifest = _read_manifest(manifest_path)
    try:
        differences = DataFingerprint.from_dict(manifest["data_fingerprint"]).differences(fingerprint)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"irreducible table {folder} is damaged: its manifest has no fingerprint of the data. Build it again."
        ) from error
    if differences:
        raise ValueError(
            f"irreducible table {folder} does not belong to this data: {'; '.join(differences)}. Use the data, seed "
            "and options it was built with, or build a table for this data with `reducr irreducible`."
        )
    _check_settings(folder, manifest.get("settings", {}), settings)
    if verify_checksum and file_checksum(values_path) != manifest["values_checksum"]:
        raise ValueError(
            f"irreducible table {folder} is damaged: the checksum of values.npy does not match its manifest. Build it "
            "again."
        )
    return _read_values(values_path, manifest)


def _check_settings(folder: Path, table_settings: Any, settings: Mapping[str, Any] | None) -> None:
    if not isinstance(table_settings, Mapping):
        raise ValueError(  # noqa: TRY004  (a fault of the file)
            f"irreducible table {folder} is damaged: its settings have no names. Build it again."
        )
    for name, value in (settings or {}).items():
        if table_settings.get(name) != value:
            raise ValueError(
                f"irreducible table {folder} was made with {name}={table_settings.get(name)}; this run has "
                f"{name}={value}. Use the same value, or build a table with this one."
            )


def _read_values(path: Path, manifest: Mapping[str, Any]) -> IrreducibleTable:
    folder = path.parent
    try:
        check_regular(path)
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError) as error:
        raise ValueError(
            f"irreducible table {folder} is damaged: values.npy cannot be read ({error}). Build it again."
        ) from error
    if list(values.shape) != manifest["shape"] or str(values.dtype) != manifest["dtype"]:
        raise ValueError(
            f"irreducible table {folder} is damaged: values.npy holds {values.dtype} {values.shape}, the manifest says "
            f"{manifest['dtype']} {tuple(manifest['shape'])}. Build it again."
        )
    try:
        return IrreducibleTable(values, kind=manifest["kind"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"irreducible table {folder} is damaged: {error} Build it again.") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest and check that it has every entry of this format."""
    folder = path.parent
    try:
        manifest: dict[str, Any] = json.loads(read_regular_text(path))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"irreducible table {folder} is damaged: its manifest cannot be read ({error}). Build it again."
        ) from error
    if not isinstance(manifest, dict):
        raise ValueError(  # noqa: TRY004  (a fault of the file)
            f"irreducible table {folder} is damaged: its manifest holds no names. Build it again."
        )
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
