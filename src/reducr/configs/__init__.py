"""Configurations of the training program. Hydra imports this package, which registers those without a YAML file."""

from reducr.pipeline.register import register

register()
