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

torch.set_num_threads(1)
for _ in range(num_first_blocks):
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones({BLOCK_BYTES}, dtype=torch.uint8)
print("\\n", (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""
# a small allocation at its edge can make a block too small for the next one, hence the first 30
OF_A_COMMAND = f"""
from reducr.cli import main

main(["run", "--cfg", "job"])  # like every training command
num_first_blocks = 30
{FAULTS}
"""
OF_THE_FUNCTION = f"""
from reducr._internal.memory import keep_freed_memory

keep_freed_memory()
num_first_blocks = 0
{FAULTS}
"""


def environment(**options):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return own | options


def pages_mapped_anew(output):
    """Pages that the system maps for each block that is freed and allocated again."""
    return float(output.splitlines()[-1])


def test_a_command_keeps_freed_memory_for_the_next_block():
    assert pages_mapped_anew(forked.run(["-c", OF_A_COMMAND], env=environment(), check=True).stdout) < 100


def test_allocator_settings_of_the_user_are_kept():
    """The allocator reads its environment when an interpreter starts."""
    pages = BLOCK_BYTES / os.sysconf("SC_PAGESIZE")
    command = [sys.executable, "-c", OF_THE_FUNCTION]
    settings = environment(MALLOC_MMAP_THRESHOLD_="1000000")
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert pages_mapped_anew(done.stdout) > 0.9 * pages
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert pages_mapped_anew(done.stdout) < 0.5 * pages
