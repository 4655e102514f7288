"""Image files to read in tests."""

import numpy as np
import torch
from PIL import Image

from reducr.data.io.images import read_images

HOLDS = ("memory", "disk", "stream")


def picture(width, height, seed=0):
    """A smooth colour picture (H, W, 3), so that JPEG keeps it."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def write(path, pixels, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def write_all(folder, num_images=7, size=8):
    """PNG files, whose pixels are kept exactly, and these pixels (N, 3, S, S)."""
    pixels = [picture(size, size, seed) for seed in range(num_images)]
    paths = [write(folder / f"{place}.png", image) for place, image in enumerate(pixels)]
    return paths, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def read(paths, hold="memory", *, folder=None, **options):
    options = {"image_size": 8, **options}
    return read_images(paths, hold=hold, cache_dir=folder if hold == "disk" else None, **options)


def damage(paths):
    """Remove one file, replace one by text and truncate one; returns their positions."""
    paths[1].unlink()
    paths[2].write_text("<html>not found</html>")
    paths[5].write_bytes(paths[5].read_bytes()[:-40])
    return [1, 2, 5]
