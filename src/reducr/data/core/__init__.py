"""What every data set shares: splits, class imbalance, noise and transforms."""
