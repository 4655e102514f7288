import os
import subprocess
import sys

import pytest

import forked

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="only glibc is told what to keep"
)
BLOCK_BYTES = 2**26
FAULTS = f"""
import resource, sys
import torch
from reducr.cli import main

num_first_blocks = int(sys.argv[1])
main(["run", "--cfg", "job"])  # like every training command
torch.set_num_threads(1)
for _ in range(num_first_blocks):
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
print("\\n", (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


def environment(**options):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return own | options


def pages_mapped_anew(output):
    """Pages that the system maps for each block that is freed and allocated again."""
    return float(output.splitlines()[-1])


def test_freed_memory_is_kept_for_the_next_block():
    # a small allocation at its edge can make a block too small for the next one, hence the first 30
    assert pages_mapped_anew(forked.run(["-c", FAULTS, 30], env=environment(), check=True).stdout) < 100


def test_allocator_settings_of_the_user_are_kept():
    pages = BLOCK_BYTES / os.sysconf("SC_PAGESIZE")
    # the allocator reads its environment when an interpreter starts
    told = environment(MALLOC_MMAP_THRESHOLD_="1000000")
    done = subprocess.run([sys.executable, "-c", FAULTS, "0"], env=told, capture_output=True, text=True, check=True)
    assert pages_mapped_anew(done.stdout) > 0.9 * pages
