"""The training program: all stages of an experiment, from a configuration to a finished run folder."""

from reducr.pipeline.run import open_data, resume_run, run_experiment, run_irreducible, run_train

__all__ = ["open_data", "resume_run", "run_experiment", "run_irreducible", "run_train"]
