"""``genflow search-times``: trials are told, the best times are stored with the model, and taken from then on."""

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.cli.main import main
from genflow.cli.search_times import FIRST_SEED
from genflow.data.images import load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.features import load_features
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.measurement import moments_of
from genflow.evaluation.protocol import load_results
from genflow.evaluation.sources import FoundImages, Samples
from genflow.nn import DiT
from genflow.parameterizations import ConsistencyKarras, PredictVelocity
from genflow.pipeline import GenflowPipeline
from genflow.sampling.generate import choose_times, generate
from genflow.schedules import VE, Linear

SHORT = ["--num", "70", "--tolerance", "2", "--device", "cpu"]


def consistency_model(classes: int = 10, times: dict[str, list[float]] | None = None) -> Denoiser:
    torch.manual_seed(3)
    network = DiT(image_size=(8, 8), in_channels=1, num_classes=classes, width=16, depth=1, heads=2)
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    own = {"image_shape": (1, 8, 8), "num_classes": classes, "sampler": "multistep", "steps": 1, "times": times}
    return Denoiser(network, VE(), ConsistencyKarras(), **own)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A model as a plain folder and as a run's pipeline, a flow, and statistics of digits."""
    root = tmp_path_factory.mktemp("models")
    consistency_model().save_pretrained(root / "plain")
    stored = {"2": [80.0, 0.5, 0.0], "4": [80.0, 9.0, 3.0, 1.0, 0.0]}
    GenflowPipeline(consistency_model(times=stored)).save_pretrained(str(root / "run" / "model"))
    network = DiT(image_size=(8, 8), in_channels=1, width=16, depth=1, heads=2)
    flow = Denoiser(network, Linear(), PredictVelocity(), image_shape=(1, 8, 8))
    GenflowPipeline(flow).save_pretrained(str(root / "flow"))
    return root


@pytest.fixture
def root(models, tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """A working directory with a copy of the models."""
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trials(printed: str) -> dict[tuple[float, ...], float]:
    """The times that were tried, with the distance of each."""
    found = re.findall(r"^trial \d+: times ([\d. ]+), distance ([\d.]+)$", printed, flags=re.MULTILINE)
    return {tuple(map(float, times.split())): float(distance) for times, distance in found}


def by_hand(times: tuple[float, ...], guidance: float = 1.0) -> float:
    """The distance of a trial of the plain model."""
    data, network = load_images("digits", "train"), load_features("digits", image_shape=(1, 8, 8))
    labels = data.labels
    assert labels is not None
    samples = Samples(
        denoiser=Denoiser.from_pretrained("plain"),
        count=70,
        first_seed=FIRST_SEED,
        label=lambda seed: int(labels[seed % len(labels)]),
        times=times,
        guidance=guidance,
    )
    return frechet_distance(moments_of(samples, network), moments_of(FoundImages(data), network))


def stop(*given) -> float:
    raise KeyboardInterrupt


def times_of(config: Path) -> dict[str, list[float]]:
    return json.loads(config.read_text())["times"]


def test_the_best_times_are_stored_and_taken_from_then_on(root, capsys) -> None:
    before = json.loads((root / "plain" / "config.json").read_text())
    weights = (root / "plain" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert main(["search-times", "plain", "digits", *SHORT]) == 0
    printed = capsys.readouterr().out
    tried = trials(printed)
    assert len(tried) >= 10
    (stored,) = times_of(root / "plain" / "config.json").values()
    best = min(tried, key=lambda times: tried[times])
    assert best == pytest.approx(tuple(stored), rel=1e-3)
    assert f"2 steps: best at times {' '.join(f'{t:.4g}' for t in stored)}, distance " in printed
    after = json.loads((root / "plain" / "config.json").read_text())
    assert after == before | {"times": {"2": stored}}  # and nothing else
    assert (root / "plain" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert not list(root.rglob(".partial-*"))

    loaded = Denoiser.from_pretrained("plain")
    assert choose_times(loaded, 2, None).tolist() == stored
    asked = generate(loaded, range(3), labels=[1, 2, 3], times=stored)
    assert torch.equal(generate(loaded, range(3), labels=[1, 2, 3], steps=2), asked)


def test_a_trial_is_of_training_images_and_seeds_that_no_figure_is_of(root, capsys) -> None:
    assert main(["search-times", "plain", "digits", *SHORT, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "trials of 70 samples of seeds from 4,294,967,296, sampler multistep, against digits-train"
    )
    assert printed.endswith("nothing is stored: this was a dry run\n")
    assert times_of(root / "plain" / "config.json") == {}
    tried = list(trials(printed).items())[1:3]
    measured = [by_hand(times) for times, _ in tried]
    assert [told for _, told in tried] == pytest.approx(measured, rel=1e-3)


def test_a_trial_is_guided_as_asked(root, capsys, monkeypatch) -> None:
    """The first one, after which the search is stopped; so strongly because labels matter little to this network."""

    def only_once(*given) -> float:
        monkeypatch.setattr("genflow.cli.search_times.frechet_distance", stop)
        return frechet_distance(*given)

    monkeypatch.setattr("genflow.cli.search_times.frechet_distance", only_once)
    assert main(["search-times", "plain", "digits", "--guidance", "30", *SHORT]) == 130
    ((times, told),) = trials(capsys.readouterr().out).items()
    assert told == pytest.approx(by_hand(times, guidance=30.0), rel=1e-3)
    assert told != pytest.approx(by_hand(times), rel=1e-2)


def test_more_steps_are_searched_greedily_and_a_runs_model_is_found(root, capsys) -> None:
    config = root / "run" / "model" / "denoiser" / "config.json"
    assert main(["search-times", "run", "digits", "--steps", "3", *SHORT]) == 0
    printed = capsys.readouterr().out
    tried = trials(printed)
    assert next(iter(tried)) == (80.0, 0.5, 0.0)  # what was there is tried first
    stored = times_of(config)
    assert list(stored) == ["2", "3", "4"]
    assert stored["4"] == [80.0, 9.0, 3.0, 1.0, 0.0]  # of other numbers of steps, nothing changes
    for steps in ("2", "3"):
        best = min((times for times in tried if len(times) == int(steps) + 1), key=lambda times: tried[times])
        assert best == pytest.approx(tuple(stored[steps]), rel=1e-3)
    more = [times for times in tried if len(times) == 4]
    greedy = [times for times in more if set(times) > {float(f"{t:.4g}") for t in stored["2"]}]
    assert len(greedy) >= len(more) - 1  # all but the schedule's own grid
    assert choose_times(GenflowPipeline.from_pretrained("run/model").denoiser, 3, None).tolist() == stored["3"]


def test_a_figure_tells_the_times_that_it_is_of(root, capsys) -> None:
    assert main(["fid", "run", "digits", "--steps", "1,2", "--num", "64", "--out", "a.json", "--report", "a.html"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 network calls, at times 80 0.5 0, no guidance") == 1
    assert printed.count(" at times ") == 1
    assert [r.protocol.samples.sampling.times for r in load_results(Path("a.json"))] == ["the schedule's", "80 0.5 0"]
    assert "80 0.5 0" in Path("a.html").read_text()


def test_a_reference_of_ones_own_is_taken_as_genflow_fid_takes_it(root, capsys) -> None:
    np.savez("own.npz", images=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    own = ["search-times", "plain", "own.npz", "--features", "digits", "--tolerance", "5", "--device", "cpu"]
    assert main(own) == 0
    printed = capsys.readouterr().out
    assert "trials of 40 samples" in printed
    assert "in features of digits\nreport figures on other images than these" in printed
    known = set(trials(printed))
    assert main(["stats", "own.npz", "-o", "stats.npz", "--features", "digits"]) == 0
    capsys.readouterr()
    assert main(["search-times", "plain", "stats.npz", "--tolerance", "5", "--device", "cpu"]) == 0
    assert set(trials(capsys.readouterr().out)) >= known


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("flow digits", ["flow is of schedule Linear", "on schedule VE"]),
        ("plain digits --steps 1", ["--steps must be from 2 to 50, got 1", "highest level"]),
        ("plain digits --steps 100000", ["--steps must be from 2 to 50, got 100000"]),
        ("plain digits --tolerance 0", ["--tolerance must be positive"]),
        ("plain digits --num 1", ["--num must be at least 2"]),
        ("plain digits --first-seed -1", ["--first-seed must be in [2^32, 2^63)"]),
        ("plain digits --first-seed 0", ["--first-seed must be in [2^32, 2^63)", "figures are of seeds from 0"]),
        ("plain mnist5k", ["(1, 8, 8)", "(1, 28, 28)"]),
        ("plain nowhere", ["nowhere"]),
        ("nowhere digits", ["there is no folder nowhere"]),
        ("plain digits --guidance 2 --features digitz", ["digitz"]),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(arguments, said, root, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main(["search-times", *arguments.split(), "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("genflow: ")
    assert shown.err.count("\n") == 1, shown.err
    for part in said:
        assert part in shown.err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(root, capsys, monkeypatch) -> None:
    def refuse(dir: Path) -> None:  # to root everything can be written
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("genflow.files.tempfile.TemporaryFile", refuse)
    assert main(["search-times", "plain", "digits", *SHORT]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "config.json cannot be written: no file can be made in the folder" in shown.err
    assert "(Permission denied)" in shown.err


def test_a_search_that_is_stopped_leaves_the_model_as_it_was(root, capsys, monkeypatch) -> None:
    before = (root / "plain" / "config.json").read_bytes()
    monkeypatch.setattr("genflow.cli.search_times.frechet_distance", stop)
    assert main(["search-times", "plain", "digits", *SHORT]) == 130
    assert capsys.readouterr().err.endswith("genflow: stopped\n")
    assert (root / "plain" / "config.json").read_bytes() == before
