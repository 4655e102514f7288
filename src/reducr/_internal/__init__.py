"""Private building blocks: checks, names, files, random seeds and states, buffers, collectives, deprecation."""
