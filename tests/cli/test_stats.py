"""``genflow stats``: a file that stands for images, with the protocol that it was made by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.cli import stats
from genflow.cli.main import main
from genflow.data.images import load_images
from genflow.evaluation.features import Outputs, load_features
from genflow.evaluation.references import load_reference
from genflow.evaluation.statistics import FeatureStats

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    return folder


def folder(name: str, count: int = 5, kind: str = "jpg", size: tuple[int, int] = (12, 10)) -> None:
    Path(name).mkdir()
    for k in range(count):
        pixels = RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(name) / f"{k}.{kind}")


def refused(capsys, *arguments: str) -> str:
    assert main(["stats", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("genflow: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(("split", "count"), [("train", 1198), ("test", 599), ("all", 1797), ("auto", 599)])
def test_the_file_holds_the_moments_of_the_images(capsys, split: str, count: int) -> None:
    """Whatever the units they pass in; the last is not whole."""
    assert main(["stats", "digits", "--split", split, "-o", "digits.npz"]) == 0
    shown = capsys.readouterr().out
    found = load_reference(Path("digits.npz"))
    part = "test" if split == "auto" else split
    data = load_images("digits", part)
    network = load_features("digits")
    expected = FeatureStats.of(network.features(torch.from_numpy(data.images)))
    torch.testing.assert_close(found.stats.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.stats.covariance, expected.covariance, rtol=1e-5, atol=1e-6)
    assert found.stats.count == found.images.n == count
    assert (found.images.split, found.network) == (part, network.identity)
    assert len(found.images.hash) == 32
    assert found.spatial is None
    assert shown.startswith("digits.npz: mean and covariance of 64 features\n  images: digits-")
    assert f"{count:,} images, 1x8x8 grey uint8, codec raw" in shown
    assert f"weights {str(network.identity.weights)[:12]}" in shown


def test_how_files_were_read_is_kept(capsys) -> None:
    folder("photos")
    assert main(["stats", "photos", "--features", "pixels", "--data.size", "4", "--out", "deep/x.npz"]) == 0
    images = load_reference(Path("deep/x.npz")).images
    assert (images.name, images.n, images.split, images.shape) == ("photos", 5, "all", (3, 4, 4))
    assert (images.codec, images.resize, images.colour) == ("jpeg", "bicubic antialiased 4x4", "rgb")
    assert "3x4x4 rgb uint8, codec jpeg, resize bicubic antialiased 4x4" in capsys.readouterr().out
    assert main(["stats", "photos", "--features", "pixels", "--data.channels", "1", "-o", "grey.npz"]) == 0
    assert load_reference(Path("grey.npz")).images.colour == "grey + converted"


def test_a_second_time_gives_the_same_numbers(capsys) -> None:
    for name in ("a.npz", "b.npz"):
        assert main(["stats", "digits", "-o", name]) == 0
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert a.files == b.files
        assert all(np.array_equal(a[key], b[key]) for key in a.files)


def test_refusals_write_nothing(capsys) -> None:
    folder("photos")
    folder("one", 1)
    folder("mixed", 2)
    Image.new("L", (12, 10)).save("mixed/9.png")
    np.savez("floats.npz", images=RNG.random((3, 8, 8, 3)))
    np.savez("stats.npz", mu=np.zeros(2), sigma=np.eye(2))
    Path("model").mkdir()
    Path("model/model_index.json").write_text("{}")
    before = sorted(Path().rglob("*"))
    for arguments, message in [
        (["photos", "-o", "x.pkl"], "--out x.pkl must end in .npz"),
        (["model", "-o", "x.npz"], "model is a model, and statistics are of images: measure it with genflow fid"),
        (["stats.npz", "-o", "x.npz"], "stats.npz is a file of statistics already"),
        (["one", "-o", "x.npz"], "one has one image, and a covariance needs at least 2"),
        (["mixed", "-o", "x.npz"], "--data.channels 3"),
        (["floats.npz", "-o", "x.npz"], "measured as uint8"),
        (["nowhere", "-o", "x.npz"], "no images called 'nowhere'"),
        (["photos", "--split", "test", "-o", "x.npz"], "no held-out split"),
        (["photos", "--features", "inceptoin", "-o", "x.npz"], "inceptoin"),
        (["photos", "--features", "digits", "-o", "x.npz"], "digits"),
        (["photos", "--features", "pixels"], "out"),
    ]:
        assert message in refused(capsys, *arguments)
    assert sorted(Path().rglob("*")) == before


class Spatial:
    """Looks like Inception: four vectors' entries, and spatial features that are multiples of the first."""

    identity = replace(load_features("pixels", image_shape=(3, 1, 1)).identity, name="inception", dims=4)
    name, dims = "inception", 4

    def outputs(self, images: torch.Tensor) -> Outputs:
        vectors = images.flatten(1)[:, :4].float()
        return Outputs(vectors, vectors[:, :1] * torch.arange(2023))


def test_spatial_features_are_kept_where_there_are_any(capsys, monkeypatch) -> None:
    monkeypatch.setattr(stats, "load_features", lambda *_, **__: Spatial())
    folder("photos", 70)
    assert main(["stats", "photos", "-o", "x.npz"]) == 0
    found = load_reference(Path("x.npz"))
    assert found.spatial is not None
    assert found.spatial.count == found.stats.count == 70
    torch.testing.assert_close(found.spatial.mean, found.stats.mean[0] * torch.arange(2023.0).double())
    assert "4 features and of 2,023 spatial ones" in capsys.readouterr().out
