"""Published data sets, read from the files that their authors distribute."""
