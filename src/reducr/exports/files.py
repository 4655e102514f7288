"""Write the files of an export: the table of kept examples and the reduced data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reducr.data import DataModule
from reducr.data.core.module import WritesParts
from reducr.data.core.raw import PARTS
from reducr.exports.choice import Counts
from reducr.exports.record import SelectionRecord
from reducr.pipeline.stored_run import StoredRun

Losses = tuple[Tensor, Tensor]
"""(N,) model losses and (N,) irreducible losses, nats."""


def write_examples(
    path: Path, record: SelectionRecord, positions: Counts, losses: Losses | None, settings: Mapping[str, Any]
) -> None:
    """Write one Parquet row for each of the (n,) ``positions``, best first; docs/export.md lists the columns.

    Args:
        path: the new file.
        record: the data and the counts.
        positions: (n,) kept training examples.
        losses: two more columns; None to omit them.
        settings: metadata of the file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    data = record.data
    columns = {
        "index": np.arange(len(data["train_target"])),
        "source": data["train_source"],
        "target": data["train_target"],
        "class": data["class_names"][data["train_target"]],
        "group": data["train_group"],
        "num_times_selected": record.num_times_selected,
        "num_times_scored": record.num_times_scored,
        "mean_score": record.mean_score,
    }
    if "group_names" in data:
        columns["group_name"] = data["group_names"][data["train_group"]]
    if "train_is_corrupted" in data:
        columns["is_corrupted"] = data["train_is_corrupted"]
    if losses is not None:
        columns |= {"model_loss": losses[0].numpy(), "irreducible_loss": losses[1].numpy()}
    arrays = {name: column[positions] for name, column in columns.items()}
    table = pa.table(
        {name: pa.array(array.tolist() if array.dtype.kind == "U" else array) for name, array in arrays.items()}
    )
    with path.open("wb") as file:  # pyarrow takes no names that are not UTF-8
        parquet.write_table(table.replace_schema_metadata({"reducr": json.dumps(settings)}), file)


def write_reduced_data(
    folder: Path,
    run: StoredRun,
    record: SelectionRecord,
    datamodule: DataModule,
    positions: Counts,
    *,
    is_linked: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Write the kept training examples, the holdout part and the test part, if the data module can write data.

    Args:
        folder: the new folder.
        run: the run folder, whose data is compared with the data read now.
        record: the data of the run.
        datamodule: reads the data and writes its parts.
        positions: (n,) kept training examples.
        is_linked: whether images are linked instead of copied.

    Returns:
        Options of the data module that read what was written (empty if it cannot write), and notes for the user.

    Raises:
        ValueError: if the data has changed since the run, or ``is_linked`` has no effect.
    """
    if not isinstance(datamodule, WritesParts):
        if is_linked:
            raise ValueError("`--link` has no effect: this data set is not exported as images. Omit it.")
        return {}, ["No data files were written for this data set; `index` and `source` identify the kept examples."]
    run.seed_data(datamodule, record.seeds[0])
    data = record.data
    sources = {part: data[f"{part}_source"] for part in PARTS} | {"train": data["train_source"][positions]}
    places = {part: datamodule.places(torch.from_numpy(source)).sort().values for part, source in sources.items()}
    options = datamodule.write_parts(places, folder, is_linked=is_linked)
    noise = [
        f"datamodule.{name}.{part}"
        for name in ("label_noise", "input_noise")
        for part in PARTS
        if getattr(datamodule, name)[part] is not None
    ]
    if not noise:
        return options, []
    return options, [f"The data set holds labels and inputs as read from the source, without {' and '.join(noise)}."]
