"""The study of docs/results.md: methods at equal seconds, each tuned with the same effort."""
