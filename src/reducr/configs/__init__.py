"""The YAML files of the training program."""
