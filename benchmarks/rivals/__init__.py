"""Trials of the recipe and its rivals, on examples that no report uses."""
