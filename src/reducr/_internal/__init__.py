"""Private building blocks: checks, names, files, seeds, buffers, collectives."""
