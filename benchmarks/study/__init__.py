"""The study in docs/results.md: methods at equal seconds, all tuned with the same effort."""
