"""``genflow invert``: images to noise and back, in files that say what was found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import image_data
from teachers import make_teacher

from genflow.cli.main import main
from genflow.denoiser import Denoiser
from genflow.pictures import read_image
from genflow.pixels import to_unit
from genflow.sampling import decode, invert, rising_times, slerp, translate
from genflow.schedules import VE

HEUN = ["--sampler", "heun", "--decode-sampler", "heun", "--steps", "3", "--decode-steps", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    make_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    data, path = image_data(80), tmp_path_factory.mktemp("images") / "photos.npz"
    assert data.labels is not None
    np.savez(path, images=data.images, labels=data.labels)
    return path


def read(folder: Path) -> torch.Tensor:
    return torch.stack([read_image(file) for file in sorted(folder.iterdir())])


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.int() - other.int()).abs().max() <= 1)


def test_what_is_written_is_what_python_makes(model, photos, tmp_path, capsys) -> None:
    out, data, denoiser = tmp_path / "out", image_data(80), Denoiser.from_pretrained(model)
    given = ["--first", "5", "--num", "70", "--to", "2", "--interpolate", "3", *HEUN]
    assert main(["invert", str(model), str(photos), "--out", str(out), *given]) == 0
    assert data.labels is not None
    images, labels = torch.from_numpy(data.images[5:75]), data.labels[5:75].tolist()
    noise = load_file(out / "noise.safetensors")["noise"]
    own = invert(denoiser, images, seeds=range(5, 75), labels=labels, sampler="heun", steps=3)
    torch.testing.assert_close(noise, own, rtol=1e-4, atol=1e-4)
    assert torch.equal(read(out / "original"), images)
    assert near(read(out / "reconstruction"), decode(denoiser, noise, labels=labels, sampler="heun", steps=4))
    assert near(read(out / "to-2"), decode(denoiser, noise, labels=2, sampler="heun", steps=4))
    names = sorted(p.name for p in (out / "interpolation").iterdir())
    assert names[:3] == [f"000005-000006-00{k}.png" for k in range(3)]
    assert len(names) == 69 * 3
    between = slerp(noise[0], noise[1], [0.0, 0.5, 1.0])
    nearer = [labels[0], labels[0], labels[1]]
    drawn = read(out / "interpolation")[:3]
    assert near(drawn, decode(denoiser, between, labels=nearer, sampler="heun", steps=4))
    assert near(drawn[0], read(out / "reconstruction")[0])
    both = read(out / "interpolation-to-2")
    assert near(both[:3], decode(denoiser, between, labels=2, sampler="heun", steps=4))
    assert "70 images, 6 network calls to noise and 7 back" in capsys.readouterr().out


def test_the_report_says_what_was_found(model, photos, tmp_path) -> None:
    out = tmp_path / "out"
    assert main(["invert", str(model), str(photos), "--num", "9", "--out", str(out), *HEUN]) == 0
    said = json.loads((out / "inversion.json").read_text())
    assert said["inversion"] == {
        "sampler": "heun",
        "steps": 3,
        "times": rising_times(VE(), 3).tolist(),
        "network_calls": 6,
    }
    assert (said["decoding"]["steps"], said["decoding"]["network_calls"]) == (4, 7)
    pixels = [to_unit(read(out / kind)).double() for kind in ("reconstruction", "original")]
    assert said["mean_squared_error"] == pytest.approx(float((pixels[0] - pixels[1]).square().mean()))
    norms = load_file(out / "noise.safetensors")["noise"].square().flatten(1).sum(1)
    norm = said["squared_norm"]
    assert norm["mean"] == pytest.approx(float(norms.mean()), rel=1e-5)
    assert (norm["expected_mean"], norm["expected_std"]) == (64, pytest.approx(128**0.5))
    labels = image_data(80).labels
    assert labels is not None
    assert said["labels"] == labels[:9].tolist()
    with Image.open(out / "grid.png") as picture:  # columns: the original and its reconstruction; 6 times as large
        assert picture.size == (2 * 48 + 4, 9 * 52 - 4)
    assert sorted(p.name for p in out.iterdir()) == [
        "grid.png",
        "inversion.json",
        "noise.safetensors",
        "original",
        "reconstruction",
    ]


def test_more_steps_reconstruct_better_and_a_translation_to_ones_own_class_is_that(model, photos, tmp_path) -> None:
    found = []
    for steps in ("4", "64"):
        given = ["--num", "6", "--steps", steps, "--decode-steps", steps, "--sampler", "heun", "--labels", "1"]
        out = tmp_path / steps
        assert main(["invert", str(model), str(photos), "--out", str(out), "--to", "1", *given]) == 0
        found.append(json.loads((out / "inversion.json").read_text())["mean_squared_error"])
        assert torch.equal(read(out / "to-1"), read(out / "reconstruction"))
    assert found[1] < found[0] / 10
    images = torch.from_numpy(image_data(80).images[:6])
    with_python = translate(
        Denoiser.from_pretrained(model), images, labels=1, to=1, sampler="heun", steps=64, decode_steps=64
    )
    assert near(with_python, read(tmp_path / "64" / "to-1"))


def test_as_many_images_as_there_are(model, photos, tmp_path) -> None:
    given = ["invert", str(model), str(photos), "--first", "78", "--steps", "1", "--labels", "none"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out" / "original").iterdir()) == ["000078.png", "000079.png"]
    assert json.loads((tmp_path / "out" / "inversion.json").read_text())["labels"] is None


def test_a_folder_that_holds_something_is_left_alone(model, photos, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    given = ["invert", str(model), str(photos), "--num", "2", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    assert main(given) == 2
    assert "is there already: remove it, or give another --out" in capsys.readouterr().err
    assert sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--labels", "0", "4"], "label 4 is out of range: this model has the classes 0 to 2 (3 means none)"),
        (["--to", "7"], "label 7 is out of range"),
        (["--sampler", "straight"], "sampler"),
        (["--decode-sampler", "ancestral"], "sampler"),
        (["--steps", "-1"], "steps must be at least 1"),
        (["--decode-steps", "-1"], "steps must be at least 1"),
        (["--num", "0"], "--num must be at least 1"),
        (["--first", "80"], "--first is 80, and photos has 80 images, counted from 0"),
        (["--interpolate", "1"], "--interpolate must be 2 to 999"),
        (["--interpolate", "4", "--num", "1"], "ask for at least two"),
        (["--split", "test"], "has no held-out split"),
        (["--device", "nothing"], "no device 'nothing' here"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    given, said, model, photos, tmp_path, capsys
) -> None:
    assert main(["invert", str(model), str(photos), "--out", str(tmp_path / "out"), *given]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("mnist5k", "the images of mnist5k-test are 28x28 of 1 channels, and this model's 8x8 of 1"),
        ("digits", "have 10 classes, and this model 3: give --labels none"),
        ("digitz", "did you mean 'digits'?"),
        ("mnist5k", "and this model's 8x8 of 1: --data.size 8 resizes them"),
        ("shapes", "files in a folder or zip are converted by --data.size 8 --data.channels 1"),
    ],
)
def test_images_that_do_not_fit_the_model(images, said, model, tmp_path, capsys) -> None:
    assert main(["invert", str(model), images, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_are_read_in_the_models_size_if_asked(model, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    given = ["--labels", "none", "--steps", "1", "--data.size", "8", "--data.channels", "1"]
    assert main(["invert", str(model), str(tmp_path / "photos"), "--out", str(tmp_path / "out"), *given]) == 0
    assert read(tmp_path / "out" / "reconstruction").shape == (1, 1, 8, 8)


def test_models_that_cannot_be_followed_back_and_forth(photos, tmp_path, capsys) -> None:
    make_teacher(tmp_path / "latents", shape=(4, 8, 8), classes=0)
    assert main(["invert", str(tmp_path / "latents"), str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "draws latents of 4 channels, not pictures" in capsys.readouterr().err


def test_a_model_that_adds_noise_of_its_own_is_solved_by_euler_both_ways(photos, tmp_path, capsys) -> None:
    make_teacher(tmp_path / "noisy", sampler="ancestral")
    given = ["invert", str(tmp_path / "noisy"), str(photos), "--num", "2", "--out"]
    assert main([*given, str(tmp_path / "out")]) == 0
    assert "4 network calls to noise and 4 back, by euler" in capsys.readouterr().out
    assert main([*given, str(tmp_path / "heun"), "--sampler", "heun"]) == 0
    assert "8 network calls to noise and 7 back, by heun" in capsys.readouterr().out


def test_a_consistency_model_is_warned_of_and_not_decoded_by_its_own_sampler(photos, tmp_path, capsys) -> None:
    make_teacher(tmp_path / "ct", sampler="multistep")
    assert main(["invert", str(tmp_path / "ct"), str(photos), "--num", "2", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "4 network calls to noise and 4 back, by euler" in shown.out
    assert shown.err.startswith(f"genflow: warning: {tmp_path / 'ct'} is a consistency model")


def test_advice_for_a_model_without_classes_fits(photos, tmp_path, capsys) -> None:
    make_teacher(tmp_path / "plain", classes=0)
    assert main(["invert", str(tmp_path / "plain"), str(photos), "--to", "1", "--out", str(tmp_path / "out")]) == 2
    assert "--to translates to classes, and this model has none: leave it out" in capsys.readouterr().err


def test_the_rule_for_straight_flows_is_warned_of_on_the_way_back(model, photos, tmp_path, capsys) -> None:
    given = ["invert", str(model), str(photos), "--num", "2", "--decode-sampler", "straight", "--decode-steps"]
    assert main([*given, "2", "--out", str(tmp_path / "two")]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*given, "3", "--out", str(tmp_path / "three")]) == 0
    assert "the sampler straight solves straight flows only" in capsys.readouterr().err
