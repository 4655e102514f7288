"""The training program: all stages of an experiment, from a configuration to a finished run folder."""

from reducr.pipeline.resume import ResumeOptions, open_data, resume_run
from reducr.pipeline.run import run_experiment, run_irreducible, run_train

__all__ = ["ResumeOptions", "open_data", "resume_run", "run_experiment", "run_irreducible", "run_train"]
