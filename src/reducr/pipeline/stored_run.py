"""A run folder opened again: its configuration, its data, and the losses of its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from reducr._internal.run_check import check_unchanged
from reducr._internal.run_start import RunStart
from reducr.data import DataModule, ExampleLoader
from reducr.functional import per_example_cross_entropy
from reducr.lightning import model_state
from reducr.pipeline.data_record import check_same_data, recorded_arrays
from reducr.pipeline.inputs_record import check_same_inputs
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.resume import load_config_of_run
from reducr.pipeline.run import make_datamodule
from reducr.pipeline.setup import METHOD_ALIASES, SeedData
from reducr.scoring import scoring_pass

_BATCH_SIZE = 1000


@dataclass(frozen=True)
class StoredRun:
    """A run folder, with the configuration that the run was started with.

    Args:
        folder: the run folder.
        started_in: the working directory at the start; relative paths in the configuration count from it.
        config: the configuration.
    """

    folder: Path
    started_in: Path
    config: DictConfig

    @classmethod
    def read(cls, folder: Path, *, is_trusted: bool = False, data_dir: Path | None = None) -> StoredRun:
        """Read ``run.json`` and ``config.yaml`` of ``folder``, whose files must be as the run wrote them.

        Checkpoints are compared when they are read.

        Args:
            folder: the run folder.
            is_trusted: see ``load_config``.
            data_dir: the folder of the data, if it has moved; None for that of the run.

        Raises:
            FileNotFoundError: if ``folder`` is not a run folder.
            ValueError: if another version wrote it, a file has changed, or the configuration is not trusted.
        """
        start = RunStart.read(folder)
        check_unchanged(folder, lambda file: not file.endswith(".ckpt"), command="export")
        config = load_config_of_run(
            folder, command=f"reducr export {folder} ...", is_trusted=is_trusted, data_dir=data_dir
        )
        return cls(folder, start.directory, config)

    def method_name(self, name: str) -> str:
        """The method's name in this run, for a current name or one of the original repository."""
        return METHOD_ALIASES.get(name, name)

    def train_on(self, method: str) -> str:
        """Parts that ``method`` selects from: ``train``, ``holdout`` or ``train_and_holdout``."""
        return str(self.config.methods[method].train_on)

    def make_datamodule(self) -> DataModule:
        """A new data module; call it, and read its data, inside ``started_in``."""
        return make_datamodule(self.config)

    def seed_data(self, datamodule: DataModule, seed: int) -> SeedData:
        """The data of ``seed``, compared with ``data.npz`` of the run.

        Raises:
            ValueError: if the data has changed since the run.
        """
        data = SeedData.of(datamodule, seed)
        check_same_data(self.folder / f"seed_{seed}" / "data.npz", recorded_arrays(data.splits))
        check_same_inputs(self.folder, datamodule.raw.input)
        return data

    def training_losses(self, data: SeedData, method: str) -> tuple[Tensor, Tensor]:
        """Losses of the N training examples under the method's last model and under the plain reference model.

        Args:
            data: the data of one seed of this run.
            method: the method whose model is read.

        Returns:
            (N,) model losses and (N,) irreducible losses, nats, float64.

        Raises:
            FileNotFoundError: if the run has no ``last.ckpt`` for this method.
            ValueError: if the run has no table of the plain reference model.
        """
        seed_folder = self.folder / f"seed_{data.seed}"
        checkpoint = seed_folder / method / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise FileNotFoundError(
                f"{checkpoint} does not exist: the run was interrupted. Finish it with `reducr resume {self.folder}`."
            )
        name = checkpoint.relative_to(self.folder).as_posix()
        check_unchanged(self.folder, lambda file: file == name, command="export")
        stage = IrreducibleStage(self.config, data, seed_folder / "irreducible", RunDisplay(0))
        if not stage.has_table(None):
            raise ValueError(
                f"{self.folder} has no table of the plain reference model (the paper's irreducible model). Runs with "
                "`irreducible=adjusted` and `irreducible.lookup=table` have one, and so does the method `rho_loss`."
            )
        logits = torch.from_numpy(stage.table(None).values.copy())
        if logits.ndim == 3:  # (N, C, G), over classes and groups
            logits = logits.logsumexp(dim=2)
        train = data.splits.train
        model = data.make_model(self.config.model, num_outputs=train.num_classes, seed=0)
        model.load_state_dict(model_state(checkpoint))
        with torch.no_grad(), scoring_pass(model, "eval"):
            batches = ExampleLoader(train, batch_size=_BATCH_SIZE)
            losses = [per_example_cross_entropy(model(batch.input), batch.target) for batch in batches]
        return torch.cat(losses).double(), per_example_cross_entropy(logits, train.target).double()
