"""What meets the outside world - weights, data, processes, the hub - and is refused there in one line."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small import make_config, make_trainer

from genflow.build import build_denoiser, export
from genflow.cli.main import main
from genflow.denoiser import Denoiser
from genflow.nn import DiT
from genflow.parameterizations import PredictVelocity
from genflow.schedules import Linear


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A fresh working directory; caches and inputs lie elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return folder


class Planted:
    """Code in a pickle that leaves a mark when it is run."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Files and folders that something is wrong with."""
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)

    def pixels(*size: int, high: int = 256, kind=np.uint8) -> np.ndarray:
        return rng.integers(0, high, size).astype(kind)

    def save(name: str, image: Image.Image) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)

    for folder in ("good", "alpha", "deep", "cmyk", "mixed", "cut", "labelled", "gap"):
        for k in range(3):
            save(f"{folder}/{k}.png", Image.fromarray(pixels(8, 8)))
    save("alpha/1.png", Image.fromarray(pixels(8, 8, 4), "RGBA"))
    save("deep/1.png", Image.fromarray(pixels(8, 8, high=65536, kind=np.uint16)))
    save("cmyk/1.jpg", Image.fromarray(pixels(8, 8, 4), "CMYK"))
    save("mixed/1.png", Image.fromarray(pixels(8, 8, 3)))
    for k in (0, 2):
        path = root / f"cut/{k}.png"
        path.write_bytes(path.read_bytes()[:50])
    (root / "labelled/dataset.json").write_text(json.dumps({"labels": [["0.png", 0], ["9.png", 1]]}))
    (root / "gap/dataset.json").write_text(json.dumps({"labels": [[f"{k}.png", 2 * k] for k in range(3)]}))
    (root / "labels.csv").write_text("file,label\n0.png,cat\n1.png,dog\n")
    (root / "text.txt").write_text("nothing of use")
    (root / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(root / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no images")
    with zipfile.ZipFile(root / "cut.zip", "w") as archive:
        archive.writestr("a/0.png", (root / "good/0.png").read_bytes())
        archive.writestr("a/1.png", (root / "good/1.png").read_bytes()[:40])

    torch.save({"model": Planted()}, root / "planted.pt")
    save_file({"enc.other": torch.zeros(2)}, root / "other.safetensors")
    (root / "damaged.safetensors").write_bytes(b"\x00" * 7)
    torch.save({}, root / "empty.pt")
    (root / "edm.pkl").write_bytes(b"\x80\x04.")
    denoiser = build_denoiser(make_config(root), (1, 8, 8), 3)
    export(denoiser, root / "model")
    network = DiT(image_size=(8, 8), in_channels=4, width=16, depth=1, heads=2)
    export(Denoiser(network, Linear(), PredictVelocity(), image_shape=(4, 8, 8)), root / "latent")
    (root / "figure.json").write_text(json.dumps({"distance": 1.0, "weights": "0" * 64, "sampler": "euler"}))
    (root / "run").mkdir()
    make_trainer(make_config(root, steps=2)).fit()
    return root


TINY = "train tiny-edm --backbone.width 16 --train.steps 1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # weights of others
        ("import {inputs}/nowhere.pt", ["there is no file or folder", "nowhere.pt"]),
        ("import {inputs}/edm.pkl", ["edm.pkl is a pickle, which holds code", "state"]),
        ("import {inputs}/planted.pt", ["planted.pt"]),
        ("import {inputs}/text.txt", ["ends in '.txt'", ".safetensors"]),
        ("import {inputs}/damaged.safetensors", ["damaged.safetensors"]),
        ("import {inputs}/empty.pt", ["empty.pt holds no weights"]),
        ("import {inputs}/other.safetensors", ["neither of EDM's networks nor a DiT (a key is enc.other)"]),
        ("import {inputs}/other.safetensors --method dit", ["these are not the weights of a DiT", "x_embedder"]),
        ("import {inputs}/other.safetensors --method edm2", ["edm2", "rfpp"]),
        ("import {inputs}/other.safetensors --out {inputs}/good", ["good exists already: give another --out"]),
        # images
        (TINY + " --data.path {inputs}/alpha", ["1.png", "--data.background white"]),
        (TINY + " --data.path {inputs}/alpha --data.background whiteish", ["whiteish"]),
        (TINY + " --data.path {inputs}/deep", ["1.png", "16", "--data.scale-16-bit"]),
        (TINY + " --data.path {inputs}/cmyk", ["1.jpg", "CMYK", "--data.channels 3"]),
        (TINY + " --data.path {inputs}/mixed", ["1.png", "RGB", "--data.channels"]),
        (TINY + " --data.path {inputs}/mixed --data.channels 2", ["channels", "2"]),
        (TINY + " --data.path {inputs}/cut", ["2 of the", "0.png", "2.png", "repair or remove them"]),
        # labels
        (TINY + " --data.path {inputs}/labelled", ["dataset.json labels 9.png", "no such image"]),
        (TINY + " --data.path {inputs}/gap", ["dataset.json", "1"]),
        (TINY + " --data.path {inputs}/good --data.labels {inputs}/labels.csv", ["labels.csv has no label for 2.png"]),
        (TINY + " --data.path {inputs}/good --data.labels {inputs}/text.txt", ["text.txt must be a .json file"]),
        (TINY + " --data.path {inputs}/good --data.labels {inputs}/none.csv", ["none.csv"]),
        (TINY + " --data.path digits --data.labels {inputs}/labels.csv", ["digits", "labels"]),
        # archives and the hub
        (TINY + " --data.path {inputs}/broken.zip", ["broken.zip"]),
        (TINY + " --data.path {inputs}/empty.zip", ["empty.zip holds no images"]),
        (TINY + " --data.path {inputs}/cut.zip", ["a/1.png", "cannot be decoded"]),
        (TINY + " --data.path hf:", ["names no data set"]),
        (TINY + " --data.path hf:{inputs}/good?splitt=test", ["unknown option 'splitt'", "did you mean 'split'?"]),
        (TINY + " --data.path hf:nobody/nothing", ["nobody/nothing", "check the name and the connection"]),
        # networks and their inputs
        (TINY + " --data.augment 1.5", ["data.augment = 1.5", "less than 1"]),
        (TINY + " --train.microbatch -1", ["train.microbatch = -1"]),
        (TINY + " --backbone.head-channels 7", ["7", "32"]),
        (TINY + " --backbone.resample-filter 1 2 1", ["resample_filter", "even"]),
        (TINY + " --backbone.decoder-attention all", ["all", "every"]),
        ("train tiny-dit --train.steps 1 --data.augment 0.1", ["which DiT has no input for"]),
        ("sample {inputs}/latent", ["draws latents of 4 channels", "autoencoder"]),
        # sharing
        ("push {inputs}/nowhere --repo me/it --dry-run", ["nowhere"]),
        ("push {inputs}/run --repo me/it --dry-run", ["run", "model"]),
        ("push {inputs}/model --repo it --dry-run", ["owner/name"]),
        ("push {inputs}/model --repo me/it --out x", ["--out", "--dry-run"]),
        ("push {inputs}/model --repo me/it --dry-run --out {inputs}/good", ["good"]),
        ("push {inputs}/model --repo me/it --dry-run --out x --figures {inputs}/figure.json", ["measure anew"]),
        ("push {inputs}/model --repo me/it --dry-run --out x --figures {inputs}/text.txt", ["text.txt"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(arguments, said, inputs, here, capsys) -> None:
    before = sorted(inputs.rglob("*"))
    assert main([a.format(inputs=inputs) for a in arguments.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("genflow: ")
    for part in said:
        assert part.lower() in shown.err.lower()
    assert list(here.rglob("*")) == []
    assert sorted(inputs.rglob("*")) == before


def test_a_damaged_checkpoint_is_named_with_what_to_do(inputs, here, capsys) -> None:
    tiny = ["train", "tiny-edm", "--backbone.width", "16", "--train.batch-size", "8", "--train.checkpoint-every", "1"]
    assert main([*tiny, "--train.steps", "2"]) == 0
    capsys.readouterr()
    (state,) = Path("runs/tiny-edm/checkpoints").glob("step-00000002/state.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    assert main([*tiny, "--train.steps", "3"]) == 2
    said = capsys.readouterr().err
    assert "step-00000002 is damaged" in said
    assert "remove it to go on from the one before" in said
    assert said.count("\n") == 1
    assert state.exists()
