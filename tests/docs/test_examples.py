"""Every program in ``examples`` runs as it says, with figures in range, and so does the code in docs/loops.md."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import forked
from hugging_face import Texts, make_arguments, make_model, make_parts

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(*command):
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(text):
    """Worst and mean accuracy by name."""
    found = re.findall(r"^(\w+) +worst \w+ (\d\.\d+)  mean (\d\.\d+)$", text, flags=re.MULTILINE)
    return {name: (float(worst), float(mean)) for name, worst, mean in found}


def assert_better_than_uniform(text):
    found = figures(text)
    assert set(found) == {"reference", "uniform", "reducr"}
    assert found["uniform"][0] < 0.3
    assert found["reducr"][0] > 0.45
    assert found["reducr"][1] > found["uniform"][1] + 0.05
    seen, taken = map(int, re.search(r"(\d+) of (\d+) candidates selected", text).groups()[::-1])
    assert 0.09 < taken / seen < 0.101  # rounded down in every batch, but at least one point


def test_plain():
    assert_better_than_uniform(run(EXAMPLES / "plain.py"))


@pytest.mark.long
def test_stream():
    assert_better_than_uniform(run(EXAMPLES / "stream.py"))


@pytest.mark.long
def test_batch_sampler():
    """A tenth of the files is decoded, and the rule that believes the reference model has the best worst class."""
    text = run(EXAMPLES / "batch_sampler.py")
    line = r"^([\w ]+?) +worst class (\d\.\d+)  mean \d\.\d+  (\d+) of 21120 files decoded$"
    lines = {name: (float(worst), int(decoded)) for name, worst, decoded in re.findall(line, text, flags=re.MULTILINE)}
    decoded = {name: number for name, (_, number) in lines.items()}
    whole = dict.fromkeys(("uniform", "class_balanced", "priority_sampling"), 2080)
    assert decoded == whole | {"with holdout examples": 1441}  # the first file is compared with a holdout example
    assert min(lines["priority_sampling"][0], lines["with holdout examples"][0]) > 0.45
    assert max(lines["uniform"][0], lines["class_balanced"][0]) < 0.35


@pytest.mark.long
def test_hugging_face():
    done = forked.run(["-W", "error", EXAMPLES / "hugging_face.py"])
    assert done.returncode == 0, done.stderr
    assert_better_than_uniform(done.stdout)


@pytest.mark.long
def test_hugging_face_image():
    done = forked.run(["-W", "error", EXAMPLES / "hugging_face_image.py"])
    assert done.returncode == 0, done.stderr
    found = figures(done.stdout)
    assert set(found) == {"reference", "uniform", "reducr"}
    assert found["uniform"][0] < 0.2 < found["reducr"][0]
    assert found["reducr"][1] > found["uniform"][1] + 0.05


@pytest.mark.long
def test_causal_lm():
    """Half of the sums are wrong, which uniform training learns; selection by sequence and by token do not."""
    text = run(EXAMPLES / "causal_lm.py")
    pattern = r"^(\w+(?: \w+)*) +right answers: sums (\d\.\d+)  products (\d\.\d+)$"
    found = {name: (float(sums), float(products)) for name, sums, products in re.findall(pattern, text, re.MULTILINE)}
    assert set(found) == {"reference", "uniform", "rho_loss", "priority_sampling", "rho_loss by token"}
    assert found["rho_loss"][0] > found["uniform"][0] + 0.1
    assert found["rho_loss by token"][0] > found["uniform"][0] + 0.1
    assert found["priority_sampling"][1] > found["uniform"][1]


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a program in this process, which has imported already what takes longest."""
    monkeypatch.syspath_prepend(EXAMPLES)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run_program(*command):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        runpy.run_path(str(command[0]))
        return capsys.readouterr().out

    yield run_program
    torch.set_num_threads(num_threads)


@pytest.mark.long
def test_accelerate(tmp_path, run_here):
    """A run that is killed ends with the figures and the report of one that is not; two processes train as well."""
    program = EXAMPLES / "accelerate_loop.py"
    whole = run_here(program, tmp_path / "whole")
    assert figures(whole)["reducr"][0] > 0.45
    process = subprocess.Popen([sys.executable, program, tmp_path / "killed"], env=ENVIRONMENT)
    while not (tmp_path / "killed/epoch_003").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert without_seconds(run_here(program, tmp_path / "killed")) == without_seconds(whole)

    two = run("-m", "torch.distributed.run", "--nproc-per-node=2", program, tmp_path / "two")
    assert two.count("worst class") == 1
    assert figures(two)["reducr"][0] > 0.45
    assert "of 24000 candidates selected" in two  # of 24,000, on the first of the two


@pytest.mark.long
def test_fsdp2(tmp_path):
    """Two processes share one model; a run that is killed ends with the figures and the report of one that is not."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", EXAMPLES / "fsdp2.py"]
    whole = run(*command, tmp_path / "whole")
    assert figures(whole)["reducr"][0] > 0.45
    assert "2000 of 20000 candidates selected" in whole
    process = subprocess.Popen([sys.executable, *command, tmp_path / "killed"], env=ENVIRONMENT)
    while not list((tmp_path / "killed").glob("step_000000010_*.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()  # torchrun ends its processes
    assert process.wait() != 0
    assert without_seconds(run(*command, tmp_path / "killed")) == without_seconds(whole)


def without_seconds(text):
    return re.sub(r"\d+\.\d s", "", text)


def blocks_of(section):
    text = (EXAMPLES.parent / "docs/loops.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("section", ["Plain PyTorch", "accelerate"])
def test_the_code_in_loops_runs_after_the_readmes(tmp_path, monkeypatch, section):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    readme = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    for block in [*readme, *blocks_of(section)]:
        exec(block, names)
    num_batches = {"Plain PyTorch": 3 * 10, "accelerate": 10}[section]  # the last loader's
    assert names["loader"].report().num_batches == num_batches


@pytest.mark.filterwarnings("ignore:The reference model is near chance")  # the README's labels are random
def test_the_code_of_the_batch_sampler_in_loops_runs():
    readme = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    for block in [readme[0], *blocks_of("Selection before loading")]:
        exec(block, names)
    report = names["sampler"].report()
    assert (report.num_batches, report.num_selected) == (10, 9 * 24 + 1)  # 2,900 examples


def test_the_trainers_code_in_loops_runs(tmp_path):
    (selector, irreducible), holdout = make_parts(), Texts(60, seed=2, columns=())
    names = {
        "model": make_model(),
        "arguments": make_arguments(tmp_path, dataloader_drop_last=True),
        "train_dataset": Texts(),
        "holdout_dataset": holdout,
        "selector": selector,
        "irreducible": irreducible,
    }
    for block in blocks_of("Hugging Face Trainer"):
        exec(block, names)
    assert names["trainer"].report().num_steps == 24
