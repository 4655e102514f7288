"""The scoring pass: options, precision, chunks, budgets and the holdout loss."""
