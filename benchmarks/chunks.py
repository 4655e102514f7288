"""Peak memory of a step that selects 3 of 32 sequences with a small GPT-2, scored at once or in chunks.

Every figure is the peak of a process of its own, less what the process had before the step, with an allocator that
returns freed blocks at once, so that the peak is that of the tensors in use. Scored in chunks, a step
needs what scoring one chunk and training on the selected sequences need, whatever the number of candidates.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Effort, Figure, ratios

NUM_CANDIDATES, NUM_SELECTED, CHUNK, LENGTH, VOCABULARY = 32, 3, 3, 256, 8_000
CODE = """
import sys
from pathlib import Path
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
import reducr
from benchmarks.chunks import CHUNK, LENGTH, NUM_CANDIDATES, NUM_SELECTED, VOCABULARY

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def loss(logits, tokens):
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.reshape(len(tokens), -1).mean(dim=1)

class Reference:
    def lookup(self, batch):
        with torch.no_grad():
            return loss(reference(batch.input).logits, batch.target)

torch.manual_seed(0)
torch.set_num_threads(1)
config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_layer=4, n_embd=128, n_head=4)
model, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config).eval()
tokens = torch.randint(VOCABULARY, (NUM_CANDIDATES, LENGTH))
selector = reducr.make_selector("rho_loss", num_groups=1)
spec = reducr.BatchSpec(input="tokens", target="tokens", group="group")
batch = {"tokens": tokens, "group": torch.zeros(NUM_CANDIDATES, dtype=torch.int64)}

def train(tokens):
    loss(model(tokens).logits, tokens).mean().backward()

def select(batch_size):
    core = reducr.Downsampler(
        selector, Reference(), fraction=NUM_SELECTED / NUM_CANDIDATES, loss=loss, spec=spec,
        scoring=reducr.Scoring(batch_size=batch_size),
    )
    train(core.select(batch, model)["tokens"])

what = sys.argv[1]
train(tokens[:1])  # gradients and buffers of the libraries
before = peak()
if what == "at once":
    select(None)
elif what == "in chunks":
    select(CHUNK)
elif what == "one chunk":
    with torch.no_grad():
        loss(model(tokens[:CHUNK]).logits, tokens[:CHUNK])
    train(tokens[:NUM_SELECTED])
elif what == "all":
    train(tokens)
print(peak() - before)
"""


def chunked_scoring(effort: Effort) -> Iterator[Figure]:
    """Peaks over that of scoring one chunk and training on the selected sequences."""
    repetitions = effort.num_repetitions(3)
    floor = [_peak("one chunk") for _ in range(repetitions)]
    what = f"peak memory of a step that selects {NUM_SELECTED} of {NUM_CANDIDATES} sequences"
    for name, at_most in (("in chunks", 1.3), ("at once", None)):
        peaks = [_peak(name) for _ in range(repetitions)]
        yield Figure(
            f"{what}, scored {name}", ratios(peaks, floor), at_most=at_most, over=f"one chunk, {min(floor):.0f} MB"
        )


def _peak(what: str) -> float:
    """Megabytes beyond those of a process that is ready for the step."""
    command = [sys.executable, "-c", CODE, what]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.strip())
