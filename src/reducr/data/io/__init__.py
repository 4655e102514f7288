"""Read and cache images, texts and delimited files, and download them."""
