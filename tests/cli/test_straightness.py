"""``genflow straightness``: a table, a file and a picture of models beside each other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import CountingNetwork
from PIL import Image
from teachers import make_teacher

from genflow.cli.main import main
from genflow.cli.models import load_model
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser
from genflow.evaluation.crossing import crossing_of_pairs
from genflow.evaluation.straightness import straightness
from genflow.evaluation.trajectory_picture import draw
from genflow.nn import DiT
from genflow.parameterizations import PredictClean, PredictVelocity
from genflow.pipeline import GenflowPipeline
from genflow.schedules import Linear


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An EDM teacher, a fresh rectified flow (which stands still: straight), pairs; models of other shapes."""
    root = tmp_path_factory.mktemp("models")
    make_teacher(root / "teacher")
    shapes = {"still": ((1, 8, 8), 3), "colour": ((3, 8, 8), 3), "latent": ((4, 8, 8), 3), "classes": ((1, 8, 8), 4)}
    for name, (shape, classes) in shapes.items():
        network = DiT(image_size=(8, 8), in_channels=shape[0], num_classes=classes, width=16, depth=1, heads=2)
        denoiser = Denoiser(network, Linear(), PredictVelocity(), image_shape=shape, num_classes=classes)
        GenflowPipeline(denoiser).save_pretrained(str(root / name))
    pairs = ["pairs", str(root / "teacher"), "--num", "20", "--steps", "2", "--out", str(root / "pairs")]
    assert main(pairs) == 0
    return root


def test_it_prints_writes_and_draws_what_the_functions_find(root, tmp_path, capsys) -> None:
    names = [str(root / "teacher"), str(root / "still")]
    out, picture = tmp_path / "new" / "s.json", tmp_path / "s.png"
    options = ["--num", "10", "--steps", "6", "--pairs", str(root / "pairs"), "--out", str(out)]
    assert main(["straightness", *names, *options, "--picture", str(picture), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = json.loads(out.read_text())
    assert {key: written[key] for key in ("first_seed", "num", "steps")} == {"first_seed": 0, "num": 10, "steps": 6}
    assert len({len(line) for line in printed[:4]}) == 1  # columns line up
    assert re.findall(r"[^|]+", printed[0].replace(" ", "")) == [
        *("model", "straightness", "one-stepgap", "crossing", "noise", "middle", "images")
    ]
    for name, line, record in zip(names, printed[2:4], written["models"], strict=True):
        model = load_model(name, torch.device("cpu"))
        flow = straightness(model, range(10), steps=6)
        crossed = crossing_of_pairs(model, load_pairs(root / "pairs"), 10)
        for key, figure in (
            ("straightness", flow.straightness),
            ("one_step_gap", flow.one_step_gap),
            ("crossing", crossed),
        ):
            assert record[key] == {"value": figure.value, "standard_error": figure.standard_error}
            assert f"| {figure.value:.4f} (s.e. {figure.standard_error:.4f})" in line
        assert (record["model"], record["profile"]) == (name, list(flow.profile))
        assert line.startswith(f"| {name} ")
    assert written["models"][1]["straightness"]["value"] < 1e-20
    assert written["models"][0]["straightness"]["value"] > 1e-3
    assert written["models"][0]["times"][0] == pytest.approx(80 / 81)
    assert printed[4] == f"look at {picture}"
    with Image.open(picture) as drawn:
        seen = torch.from_numpy(np.array(drawn).transpose(2, 0, 1))
    assert torch.equal(seen, draw({name: load_model(name, torch.device("cpu")) for name in names}, range(10)))


def test_the_same_seeds_give_the_same_picture_and_straight_lines_cover_their_chords(root) -> None:
    teacher, still = (load_model(str(root / name), torch.device("cpu")) for name in ("teacher", "still"))
    picture = draw({"before": teacher, "after": still}, range(5), steps=16)
    assert (picture.dtype, picture.shape[0]) == (torch.uint8, 3)
    assert torch.equal(picture, draw({"before": teacher, "after": still}, range(5), steps=16))
    four = draw(dict.fromkeys("abcd", still) | {"a": teacher}, range(2), steps=8)
    assert four.shape[2] * 2 == picture.shape[2] * 3
    assert four.shape[1] > 1.5 * picture.shape[1]


def test_every_line_is_drawn_in_its_panel() -> None:
    """A still flow of one seed: one horizontal line, right across the panel."""

    class Still(Denoiser):
        def denoise(self, x_t, t, y=None, s=None, augment=None):
            return x_t

    denoiser = Still(CountingNetwork(0), Linear(), PredictClean(), image_shape=(1, 4, 4))
    picture = draw({"still": denoiser}, [7], steps=8).numpy().astype(int)
    coloured = (picture.max(0) - picture.min(0)) > 60
    rows, columns = np.nonzero(coloured)
    assert rows.max() - rows.min() < 4
    assert columns.max() - columns.min() > 0.85 * picture.shape[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", ["no model: give at least one"]),
        ("{root}/nowhere", ["nowhere"]),
        ("{root}/still --num 0", ["--num must be at least 1"]),
        ("{root}/still --steps 1", ["--steps must be at least 2", "every path is straight"]),
        ("{root}/still --first-seed -1", ["[0, 2^64)", "--first-seed -1"]),
        ("{root}/still --pairs {root}/still", ["still", "give a folder that genflow pairs writes"]),
        ("{root}/colour --pairs {root}/pairs", ["pairs", "(1, 8, 8)", "(3, 8, 8)"]),
        ("{root}/classes --pairs {root}/pairs", ["3 classes", "4"]),
        ("{root}/still {root}/colour --picture p.png", ["pictures of one shape", "(1, 8, 8) and (3, 8, 8)"]),
        ("{root}/latent --picture p.png", ["grey or RGB", "(4, 8, 8)"]),
        ("{root}/still --picture {root}", ["is a folder: give the name of a file"]),
        ("{root}/still --device abacus", ["abacus"]),
        ("{root}/still {root}/teacher {root}/still", ["still is given twice, and is the same model both times"]),
        ("{root}/still {root}/still/", ["still/ is given twice"]),
        ("{root}/still --picture s.jpg", ["--picture s.jpg must end in .png: pictures are written as PNG"]),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, said, root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["straightness", *arguments.format(root=root).split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert all(word in shown.err for word in said)
    assert not list(tmp_path.iterdir())
