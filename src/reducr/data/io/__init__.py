"""Reading and caching of images, text and delimited files, and downloads."""
