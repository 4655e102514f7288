import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="only glibc is told what to keep"
)
BLOCK_BYTES = 2**26
FAULTS = f"""
import resource
import torch
from reducr.cli import main

main(["run", "--cfg", "job"])  # like every training command
torch.set_num_threads(1)
for _ in range(30):  # a small allocation at its edge can make a block too small for the next one
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
print("\\n", (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def pages_mapped_anew(**environment):
    """Pages that the system maps for each block that is freed and allocated again."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=own | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def test_freed_memory_is_kept_for_the_next_block():
    assert pages_mapped_anew() < 100


def test_allocator_settings_of_the_user_are_kept():
    pages = BLOCK_BYTES / os.sysconf("SC_PAGESIZE")
    assert pages_mapped_anew(MALLOC_MMAP_THRESHOLD_="1000000") > 0.9 * pages
