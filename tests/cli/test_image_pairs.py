"""``genflow pairs --invert``: real images and their noise; shared, interrupted or grown, which files must not tell."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from launch import free_port, start, together
from small import image_data, make_config
from teachers import make_teacher

import genflow.data.pair_files as module
from genflow.build import build_trainer
from genflow.cli.main import main
from genflow.config import DataConfig, KarrasConfig
from genflow.data.images import load_images
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser, weights_hash
from genflow.sampling import decode, invert

COUNT = 1100  # two shards, and a last unit that is not full


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    make_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Labelled images of three classes, in one file."""
    data, path = image_data(COUNT), tmp_path_factory.mktemp("images") / "photos.npz"
    assert data.labels is not None
    np.savez(path, images=data.images, labels=data.labels)
    return path


def command(model: Path, photos: Path, out: Path, *given: str) -> list[str]:
    return ["pairs", str(model), "--invert", str(photos), "--steps", "2", "--out", str(out), *given]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(model, photos, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(lambda: main(command(model, photos, out)))
    process.join()
    assert process.exitcode == 0
    made = files(out)
    assert sorted(made) == ["manifest.json", *(f"pairs-0000000{k}.safetensors" for k in range(2))]
    return made


def test_two_processes_write_what_one_does(model, photos, whole, tmp_path) -> None:
    out = tmp_path / "out"
    assert together(lambda: main(command(model, photos, out)), 2) == [0, 0]
    assert files(out) == whole


@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_leaves_no_trace(processes: int, model, photos, whole, tmp_path) -> None:
    """Process 0 is killed in the middle of its first shard."""
    out, real = tmp_path / "out", module.save_file

    def save(tensors, path, metadata):
        real(tensors, path, metadata)
        if os.environ.get("RANK", "0") == "0":
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    def interrupted() -> int:
        module.save_file = save
        return main(command(model, photos, out))

    port = free_port()
    team = [start(interrupted, k, processes, port) for k in range(processes)]
    team[0].join(60)
    assert team[0].exitcode == -signal.SIGKILL
    for process in team:
        process.kill()
        process.join()
    assert together(lambda: main(command(model, photos, out)), processes) == [0] * processes
    assert files(out) == whole


def test_a_set_that_grew_is_the_one_made_at_once(model, photos, whole, tmp_path, capsys) -> None:
    assert main(command(model, photos, tmp_path / "out", "--num", "70")) == 0
    assert len(load_pairs(tmp_path / "out")) == 70
    assert main(command(model, photos, tmp_path / "out")) == 0
    assert files(tmp_path / "out") == whole
    assert f"{COUNT} pairs, 4 network calls each; train on them by --data.path" in capsys.readouterr().out


def test_a_pair_is_the_image_and_its_noise(model, photos, tmp_path) -> None:
    """Its noise becomes the image again, under its own class, as well as 64 steps follow the flow."""
    assert main(command(model, photos, tmp_path / "out", "--num", "80", "--sampler", "heun", "--steps", "64")) == 0
    pairs, data = load_pairs(tmp_path / "out"), load_images(photos)
    index = np.arange(80)
    assert data.labels is not None
    assert pairs.labels is not None
    assert np.array_equal(pairs.images[index], data.images[index])
    assert np.array_equal(pairs.labels, data.labels[:80])
    teacher = Denoiser.from_pretrained(model)
    noise = torch.from_numpy(pairs.noise(index))
    own = invert(teacher, torch.from_numpy(data.images[index]), labels=pairs.labels.tolist(), sampler="heun", steps=64)
    torch.testing.assert_close(noise, own, rtol=1e-3, atol=1e-3)
    again = decode(teacher, noise, labels=pairs.labels.tolist(), sampler="heun", steps=64)
    assert (again.int() - torch.from_numpy(data.images[index]).int()).abs().float().mean() < 8


def test_the_default_is_heun_in_128_calls(model, photos, tmp_path) -> None:
    given = ["pairs", str(model), "--invert", str(photos), "--num", "3", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())
    made = said["made"]
    assert (made["sampler"], made["steps"], made["network_calls"]) == ("heun", 64, 128)
    assert (len(made["times"]), made["times"][0], made["times"][-1]) == (65, 0.002, 80.0)
    assert made["blend"] == {"time": 0.002, "generator": "philox4x64-10/box-muller/1"}
    assert made["teacher"]["weights"] == weights_hash(Denoiser.from_pretrained(model))
    assert made["images"] == {"fingerprint": load_images(photos).fingerprint, "count": COUNT}
    assert made["labels"] == "the images' own"
    assert (said["generator"], said["count"], said["first_seed"], said["num_classes"]) == ("stored", 3, 0, 3)
    assert main([*given[:-1], str(tmp_path / "euler"), "--sampler", "euler"]) == 0
    made = json.loads((tmp_path / "euler" / "manifest.json").read_text())["made"]
    assert (made["steps"], made["network_calls"]) == (128, 128)


def test_classes_can_be_left_out(model, photos, tmp_path) -> None:
    assert main(command(model, photos, tmp_path / "out", "--num", "5", "--labels", "none")) == 0
    pairs = load_pairs(tmp_path / "out")
    assert (pairs.labels, pairs.num_classes) == (None, 0)
    make_teacher(tmp_path / "plain", classes=0)
    assert main(command(tmp_path / "plain", photos, tmp_path / "other", "--num", "5")) == 0
    assert load_pairs(tmp_path / "other").labels is None


def test_pairs_of_seeds_and_of_images_do_not_mix(model, photos, tmp_path, capsys) -> None:
    seeds = ["pairs", str(model), "--num", "5", "--steps", "2", "--sampler", "euler", "--out"]
    assert main([*seeds, str(tmp_path / "seeds")]) == 0
    assert main(command(model, photos, tmp_path / "images", "--num", "5")) == 0
    before = files(tmp_path / "seeds"), files(tmp_path / "images")
    capsys.readouterr()
    assert main(command(model, photos, tmp_path / "seeds", "--num", "9")) == 2
    said = capsys.readouterr().err
    assert "holds pairs of another" in said
    assert "images" in said
    assert main([*seeds, str(tmp_path / "images")]) == 2
    assert "holds pairs of another" in capsys.readouterr().err
    assert (files(tmp_path / "seeds"), files(tmp_path / "images")) == before


def test_pairs_of_other_images_are_not_continued(model, photos, tmp_path, capsys) -> None:
    assert main(command(model, photos, tmp_path / "out", "--num", "5")) == 0
    with np.load(photos) as held:
        np.savez(tmp_path / "other.npz", images=held["images"][::-1], labels=held["labels"][::-1])
    assert main(command(model, tmp_path / "other.npz", tmp_path / "out", "--num", "9")) == 2
    said = capsys.readouterr().err
    theirs, ours = (load_images(each).fingerprint[:12] for each in (photos, tmp_path / "other.npz"))
    assert f"holds pairs of another images fingerprint ({theirs} there, {ours} here): give another --out" in said
    assert main(command(model, tmp_path / "out", tmp_path / "again")) == 2
    assert f"{tmp_path / 'out'} is a folder of pairs, whose images have their noise already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--first-seed", "3"], "--first-seed goes with pairs of seeds"),
        (["--guidance", "2"], "--guidance goes with pairs of seeds"),
        (["--labels", "random"], "--labels random, or of classes, goes with pairs of seeds"),
        (["--labels", "1", "2"], "--labels random, or of classes, goes with pairs of seeds"),
        (["--sampler", "dpmpp_2m"], "dpmpp_2m does not follow a flow from image to noise: choose euler or heun"),
        (["--num", "1101"], "--num is 1101, and photos has 1100 images"),
        (["--num", "0"], "--num must be at least 1"),
        (["--steps", "-1"], "steps must be at least 1"),
        (["--invert", "mnist5k"], "are 28x28 of 1 channels, and this model's 8x8 of 1"),
        (["--invert", "digits"], "have 10 classes, and this model 3: give --labels none"),
        (["--invert", "nowhere"], "no images called 'nowhere'"),
        (["--invert", "", "--data.size", "8"], "--data options say how the images of --invert are read"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    given, said, model, photos, tmp_path, capsys
) -> None:
    assert main(command(model, photos, tmp_path / "out", *given)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_images_without_labels_need_a_word(model, tmp_path, capsys) -> None:
    np.savez(tmp_path / "plain.npz", images=image_data(5, classes=0).images)
    assert main(command(model, tmp_path / "plain.npz", tmp_path / "out")) == 2
    assert "has classes, and the images of plain no labels: give --labels none" in capsys.readouterr().err
    assert main(command(model, tmp_path / "plain.npz", tmp_path / "out", "--labels", "none")) == 0


def test_a_run_trains_on_them(model, photos, tmp_path) -> None:
    assert main(command(model, photos, tmp_path / "pairs", "--num", "200")) == 0
    pairs = load_pairs(tmp_path / "pairs")
    data = DataConfig(path=str(tmp_path / "pairs"))
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = replace(make_config(tmp_path / "run"), data=data, parameterization=KarrasConfig(), init=str(model))
    trainer, batches = build_trainer(config), []
    trainer.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    trainer.fit()
    assert len(batches) == 8
    for batch in batches:
        index = batch.index.numpy()
        assert torch.equal(batch.noise, torch.from_numpy(pairs.noise(index)))
        assert pairs.labels is not None
        assert batch.y.tolist() == pairs.labels[index].tolist()
