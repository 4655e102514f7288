"""The report of a real run: its numbers recomputed, its page parsed, and rendered in a browser."""

import base64
import csv
import io
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from rich.console import Console

from reducr._internal.run_check import accept_changes
from reducr._internal.run_folder import read_results, run_lock, write_results
from reducr.pipeline import open_data, run_experiment
from reducr.reports import write_report
from reducr.reports.comparison import comparisons
from reducr.reports.run_reader import Run

METHODS = ["uniform", "rho_loss", "reducr", "irreducible_model"]
NUM_STEPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of three seeds that tests at every refresh."""
    folder = tmp_path_factory.mktemp("report") / "run"
    options = [
        f"num_steps={NUM_STEPS}", "holdout.refresh_steps=5", "irreducible.num_epochs=3", "seeds=[0,1,2]",
        f"compare=[{','.join(METHODS)}]", f"model_io.run_dir={folder}", "trainer.accelerator=cpu",
        "record.test_accuracy=true", "record.page=false",
    ]  # fmt: skip
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return run_experiment(compose("main", options))


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    """The report of it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("out")
    write_report([run], out=folder, console=Console(quiet=True), open_data=open_data)
    return folder


def table(out, name):
    with (out / "report" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return {next(iter(line.values())): line for line in csv.DictReader(file)}


def column(run, method, name, rule="last"):
    with (run / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {
        int(line["seed"]): float(line[name])
        for line in lines
        if line["method"] == method and line["checkpoint_rule"] == rule
    }


def evaluations(run, method, seed):
    with (run / f"seed_{seed}" / method / "csv" / "metrics.csv").open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["test/mean_accuracy"]]


@pytest.mark.parametrize("rule", ["last", "best_worst_group", "best_mean"])
def test_accuracies_and_differences_under_every_rule(run, out, rule):
    for method, line in table(out, f"accuracy_{rule}").items():
        for name, heading in (("worst_class_accuracy", "worst class"), ("mean_accuracy", "mean")):
            own, reference = column(run, method, name, rule), column(run, "reducr", name, rule)
            assert float(line[heading]) == pytest.approx(statistics.fmean(own.values()), abs=1e-5)
            assert float(line[f"{heading}: deviation"]) == pytest.approx(statistics.stdev(own.values()), abs=1e-5)
            if method == "reducr":
                continue
            differences = [reference[seed] - own[seed] for seed in (0, 1, 2)]
            mean, margin = statistics.fmean(differences), 4.302653 * statistics.stdev(differences) / 3**0.5
            shown = [float(line[f"reducr minus method: {heading}{part}"]) for part in ("", ": low", ": high")]
            assert shown == pytest.approx([mean, mean - margin, mean + margin], abs=1e-5)


def test_accuracies_at_equal_steps_and_at_equal_seconds(run, out):
    steps = table(out, "accuracy_equal_step")
    assert steps["irreducible_model"]["mean"] == ""
    for method in METHODS[:3]:  # all have as many steps, so it is the last
        own = [float(evaluations(run, method, seed)[-1]["test/mean_accuracy"]) for seed in (0, 1, 2)]
        assert float(steps[method]["mean"]) == pytest.approx(statistics.fmean(own), abs=1e-5)
        last = column(run, method, "mean_accuracy").values()
        assert sorted(own) == pytest.approx(sorted(last), abs=1e-5)

    def seconds_and_accuracies(method, seed):
        before = column(run, method, "irreducible_seconds")[seed]
        lines = evaluations(run, method, seed)
        return [(before + float(x["time/target_seconds"]), float(x["test/worst_class_accuracy"])) for x in lines]

    for name, of in (("accuracy_equal_seconds", METHODS[:3]), ("accuracy_equal_seconds_of_reducr", ["reducr"])):
        shown = table(out, name)
        for method in METHODS[:3]:
            expected = []
            for seed in (0, 1, 2):
                limit = min(seconds_and_accuracies(other, seed)[-1][0] for other in of)
                within = [accuracy for at, accuracy in seconds_and_accuracies(method, seed) if at <= limit]
                expected += within[-1:]
            assert shown[method]["seeds"] == str(len(expected))
            mean = f"{statistics.fmean(expected):.6g}" if expected else ""
            assert shown[method]["worst class"] == mean
    assert table(out, "accuracy_equal_seconds_of_reducr")["reducr"]["seeds"] == "3"


def test_seconds_of_a_training_grow_and_leave_its_tests_out(run):
    for method in METHODS[:3]:
        seconds = [float(line["time/target_seconds"]) for line in evaluations(run, method, 0)]
        assert seconds == sorted(seconds)
        rest = column(run, method, "total_seconds")[0] - column(run, method, "irreducible_seconds")[0]
        assert 0 < seconds[-1] <= rest + 0.05  # the clocks start at different lines


def test_what_was_selected(run, out):
    shown, by_class = table(out, "selection"), table(out, "selected_by_class")
    for method in METHODS[:3]:
        ever, corrupted, shares = [], [], []
        for seed in (0, 1, 2):
            with np.load(run / f"seed_{seed}" / method / "selected.npz") as selected:
                index = selected["index"]
            with np.load(run / f"seed_{seed}" / "data.npz") as data:
                ever.append(len(set(index.ravel().tolist())) / len(data["train_target"]))
                corrupted.append(data["train_is_corrupted"][index].mean())
                shares.append((data["train_target"][index] == 9).mean())
        assert float(shown[method]["share of examples ever selected"]) == pytest.approx(np.mean(ever), abs=6e-4)
        assert float(shown[method]["corrupted among the selected"]) == pytest.approx(np.mean(corrupted), abs=6e-4)
        assert float(by_class["9"][method]) == pytest.approx(np.mean(shares), abs=1e-5)
        assert shown[method]["selections"] == "200"


def test_predictions_and_confusions_agree_with_the_accuracies(run, out):
    worst = table(out, "worst_class")
    for method in METHODS:
        right, total = np.zeros(10), np.zeros(10)
        for seed in (0, 1, 2):
            with np.load(run / f"seed_{seed}" / "data.npz") as data:
                target = data["test_target"]
            with np.load(run / f"seed_{seed}" / method / "test_predictions.npz") as predictions:
                assert predictions["last"].dtype == np.uint8
                for rule in ("last", "best_worst_group", "best_mean"):
                    accuracy = column(run, method, "mean_accuracy", rule)[seed]
                    assert (predictions[rule] == target).mean() == pytest.approx(accuracy, abs=1e-6)
                for label in range(10):
                    right[label] += (predictions["last"][target == label] == label).sum()
                    total[label] += (target == label).sum()
        accuracies = right / total
        assert worst[method]["worst class"] == str(accuracies.argmin())
        assert float(worst[method]["accuracy"]) == pytest.approx(accuracies.min(), abs=6e-4)


def test_recorded_losses_are_those_of_the_last_model(run):
    import torch

    from reducr.pipeline.setup import SeedData, build, stream_seed

    with initialize_config_module("reducr.configs", version_base="1.3"):
        config = compose("main", [])
    data = SeedData.of(build(config.datamodule), 1)
    model = data.make_model(config.model, num_outputs=10, seed=stream_seed(1, "target")).eval()
    state = torch.load(run / "seed_1" / "reducr" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    model.load_state_dict({name[6:]: value for name, value in state.items() if name.startswith("model.")})
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model(data.splits.train.input), data.splits.train.target, reduction="none"
        )
    recorded = np.load(run / "seed_1" / "reducr" / "point_loss.npy")
    assert recorded.dtype == np.float32
    np.testing.assert_allclose(recorded, losses.numpy(), rtol=1e-4, atol=1e-6)


def test_the_same_tables_are_in_markdown_and_on_the_page(out):
    text, page = (out / "results.md").read_text(), (out / "report.html").read_text()
    for line in table(out, "accuracy_last").values():
        for number in ("worst class", "mean"):
            shown = f"{float(line[number]):.3f} ± {float(line[f'{number}: deviation']):.3f}"
            assert shown in text
            assert shown in re.sub("<[^>]*>", "", page)


class Reader(HTMLParser):
    """Elements with attributes, and a fault for each tag that does not fit."""

    VOID = frozenset(["meta", "link", "br", "img"])

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.faults = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


def test_the_page_is_well_formed_and_needs_nothing_else(out):
    page = (out / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert (reader.faults, reader.open) == ([], [])
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    references = [
        value
        for _, attributes in reader.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset")
    ]
    references += re.findall(r"url\(([^)]*)\)", page)
    for reference in references:
        assert reference.startswith(("#", "data:")), reference
        assert not reference.startswith("#") or reference[1:] in ids, reference
    assert not {"script", "iframe", "object"} & {tag for tag, _ in reader.elements}
    assert "@import" not in page
    for tag, attributes in reader.elements:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 20
        if tag == "th":
            assert attributes["scope"] in ("row", "col")


def test_plots_are_written_as_svg_and_png(out):
    names = {path.stem for path in (out / "report").glob("*.svg")}
    assert names == {path.stem for path in (out / "report").glob("*.png")}
    expected = """accuracy_by_class confusion_reducr corrupted cumulative_payoff_reducr group_weight_reducr
        losses_reducr mean_by_seconds mean_by_steps repeats seconds worst_class_by_seconds worst_class_by_steps"""
    assert set(expected.split()) <= names


def test_examples_are_the_images_that_the_run_was_trained_on(run, out):
    from PIL import Image
    from sklearn.datasets import load_digits

    page = (out / "report.html").read_text()
    images = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="training example (\d+), labelled (\d)">', page)
    assert len(images) == 36
    with np.load(run / "seed_0" / "data.npz") as data, np.load(run / "seed_0/reducr/selected.npz") as selected:
        times, source, target = selected["num_times_selected"], data["train_source"], data["train_target"]
        corrupted = data["train_is_corrupted"]
    digits = load_digits().images
    for content, index, label in images:
        assert int(label) == target[int(index)]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"), dtype=float)
        digit = digits[source[int(index)]]
        np.testing.assert_allclose(shown, (digit - digit.min()) / np.ptp(digit) * 255, atol=1.5)
    indices = [int(index) for _, index, _ in images]
    assert times[indices[:12]].tolist() == sorted(times.tolist(), reverse=True)[:12]
    assert set(times[indices[12:24]]) == {times.min()}
    # 30 % of the labels are wrong; of those shown as likely wrong ones most are
    assert corrupted[indices[24:]].mean() >= 0.75


def test_a_running_run_is_reported_so_far(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    lines = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("\n".join(lines[: 1 + 3 * 2]) + "\n")  # two methods of seed 0
    accept_changes(folder)
    with run_lock(folder):
        (comparison,) = comparisons([Run.read(folder)])
        assert comparison.runs[0].state == "running"
        console = Console(file=io.StringIO(), width=120)
        write_report([folder], out=folder, console=console, open_data=open_data)
    assert "is running; the report covers what it has so far." in " ".join(console.file.getvalue().split())
    page = (folder / "report.html").read_text()
    assert "2 of 12 trainings finished" in page
    (line,) = [line for line in (folder / "results.md").read_text().splitlines() if line.startswith("| reducr | 0 |")][
        :1
    ]
    assert line == "| reducr | 0 | – | – | – | – |"
    # curves of what is still being trained are there
    (series,) = [series for series in comparison.series if series.method == "reducr"]
    steps, _ = series.trainings[2].metrics.curve("test/mean_accuracy")
    assert steps.tolist() == [5, 10, 15, 20]


def test_runs_with_equal_settings_are_pooled(run, tmp_path):
    """One run a seed, as a sweep makes them, gives the figures of the run of all seeds."""
    rows = read_results(run)
    for seed in (0, 1, 2):
        shutil.copytree(
            run, tmp_path / str(seed), ignore=shutil.ignore_patterns(*{"seed_0", "seed_1", "seed_2"} - {f"seed_{seed}"})
        )
        config = (run / "config.yaml").read_text().replace("seed: null", f"seed: {seed}")
        (tmp_path / str(seed) / "config.yaml").write_text(config)
        write_results(tmp_path / str(seed), [row for row in rows if row.seed == seed])
        accept_changes(tmp_path / str(seed))
    write_report(
        [tmp_path / str(seed) for seed in (0, 1, 2)], out=tmp_path / "out", console=Console(quiet=True), with_page=False
    )
    write_report([run], out=tmp_path / "one", console=Console(quiet=True), with_page=False)
    together, one = ((tmp_path / name / "results.md").read_text() for name in ("out", "one"))
    assert together[together.index("## ") :] == one[one.index("## ") :]


def test_logging_test_accuracy_changes_nothing_but_seconds(run, tmp_path):
    options = [
        f"num_steps={NUM_STEPS}", "holdout.refresh_steps=5", "irreducible.num_epochs=3", "seeds=[0]",
        "compare=[reducr]", f"model_io.run_dir={tmp_path / 'run'}", "trainer.accelerator=cpu", "record.page=false",
        "record.point_losses=false",
    ]  # fmt: skip
    with initialize_config_module("reducr.configs", version_base="1.3"):
        folder = run_experiment(compose("main", options))
    untested, tested = (
        {name: np.load(one / "seed_0" / "reducr" / name) for name in ("selected.npz", "test_predictions.npz")}
        for one in (folder, run)
    )
    for name, arrays in untested.items():
        for array in arrays:
            np.testing.assert_array_equal(arrays[array], tested[name][array])
    assert not (folder / "seed_0" / "reducr" / "point_loss.npy").exists()
    write_report([folder], out=tmp_path / "out", console=Console(quiet=True), with_page=False)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Holdout accuracy at equal steps, when the first method ends" in text
    assert "Test accuracy was not logged during training. Set `record.test_accuracy=true` to log it." in text


# ---- in a browser

_MEASURE = """<!DOCTYPE html><body><iframe src="{page}" style="width:{width}px;height:2000px;border:0"></iframe><script>
onload = () => {{
  const inner = document.querySelector("iframe").contentWindow, page = inner.document, style = inner.getComputedStyle;
  const boxed = element => element.closest(".scroll, .picture, pre");
  const wide = [...page.body.querySelectorAll("*")].filter(
    element => !boxed(element) && element.getBoundingClientRect().right > {width} + 0.5);
  const colours = [...page.querySelectorAll("body, .note, a, figcaption, .interval, .state")].map(
    element => [style(element).color, style(page.body).backgroundColor]);
  document.body.innerText = "<" + JSON.stringify({{
    width: page.documentElement.scrollWidth,
    wide: wide.map(element => element.tagName),
    requests: inner.performance.getEntriesByType("resource").map(entry => entry.name),
    colours: colours,
    figures: [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect().height),
    images: [...page.images].every(image => image.complete && image.naturalWidth > 0),
  }}) + ">";
}};
</script></body>"""


def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed, in which the page would be rendered")
def test_the_page_in_a_browser(out, tmp_path, width, scheme):
    """No errors, no requests, nothing wider than a phone, all pictures there, and contrasts of at least 4.5."""
    frame = tmp_path / "frame.html"
    frame.write_text(_MEASURE.format(page=(out / "report.html").as_uri(), width=width))
    done = subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--window-size=1400,2200",
            "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search(r"&lt;(\{.*\})&gt;", done.stdout, flags=re.DOTALL)[1].replace("&amp;", "&"))
    assert found["width"] <= width
    assert found["wide"] == []
    assert [name for name in found["requests"] if not name.startswith("data:")] == []
    assert found["images"]
    assert len(found["figures"]) >= 12
    assert min(found["figures"]) > 80
    grounds = {ground for _, ground in found["colours"]}
    assert len(grounds) == 1
    assert (luminance(grounds.pop()) < 0.05) == (scheme == "dark")
    for colour, ground in found["colours"]:
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (colour, ground)


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)``, by the Web Content Accessibility Guidelines 2.2."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
