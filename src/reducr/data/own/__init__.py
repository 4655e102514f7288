"""Data sets of the user: tables, text, image folders, Hugging Face data sets."""
