"""Splits, class imbalance, noise, transforms: what every data set shares."""
