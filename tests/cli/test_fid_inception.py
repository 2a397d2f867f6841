"""From PNGs to figures with Inception: what torch-fidelity finds on the same files with the same weights."""

from pathlib import Path

import numpy as np
import pytest
from inception import make_inception_weights
from PIL import Image

from genflow.cli.main import main
from genflow.data.images import load_images
from genflow.evaluation.protocol import load_results

COUNT = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write(folder: Path, first: int, noise: float) -> None:
    folder.mkdir()
    rng = np.random.default_rng(first)
    images = load_images("shapes", "train").images[first : first + COUNT]
    images = (images + rng.normal(0, noise, images.shape)).round().clip(0, 255).astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:03}.png")


@pytest.mark.slow
@pytest.mark.reference
def test_images_to_figures_agree_with_torch_fidelity(tmp_path, capsys) -> None:
    import torch_fidelity

    weights = make_inception_weights(tmp_path / "weights.pth")
    write(tmp_path / "samples", 0, 12)
    write(tmp_path / "reference", 100, 0)
    asked = ["fid", "samples", "reference", "--weights", str(weights), "--metrics", "all", "--out", "ours.json"]
    assert main(asked) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert shown.startswith(f"FID-{COUNT}[inception-tf,uint8,png] = ")
    assert "40 samples and 40 reference images are too few for 2048 dims" in shown
    (found,) = load_results(Path("ours.json"))
    theirs = torch_fidelity.calculate_metrics(
        input1="samples",
        input2="reference",
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        kid_subset_size=COUNT,
        kid_subsets=1,
    )
    fid = theirs["frechet_inception_distance"]
    assert found.figures["fid"].value == pytest.approx(fid, rel=1e-4)  # 1e-3 is asked of a FID in two digits
    kid = found.figures["kid"]  # ours is the mean over subsets of half the images, theirs is of all
    assert abs(kid.value - theirs["kernel_inception_distance_mean"]) < kid.standard_error
    assert found.figures["precision"].value == pytest.approx(theirs["precision"])
    assert found.figures["recall"].value == pytest.approx(theirs["recall"])
    assert found.figures["sfid"].value > 0
    assert 1 <= found.figures["inception_score"].value < 1008

    assert main(["stats", "reference", "--weights", str(weights), "-o", "reference.npz"]) == 0
    assert main([*asked[:2], "reference.npz", *asked[3:-1], "against.json"]) == 0
    (against,) = load_results(Path("against.json"))
    for name in ("fid", "sfid"):
        assert against.figures[name].value == pytest.approx(found.figures[name].value, rel=1e-9), name
    assert "not measured: KID, precision and recall" in capsys.readouterr().out
