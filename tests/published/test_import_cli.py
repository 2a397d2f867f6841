"""`genflow import`: what it writes is a model like any other, what it says, and what it refuses."""

import hashlib
import json

import numpy as np
import pytest
import torch
from goldens.make_edm import HERE, make_tensors
from goldens.weights import fill
from safetensors.torch import save_file

from genflow.cli.main import main
from genflow.denoiser import Denoiser
from genflow.nn.embeddings import grid_embedding
from genflow.parameterizations import Karras
from genflow.pipeline import GenflowPipeline
from genflow.published.edm import RFPP_LEVELS
from genflow.schedules import VE, Linear

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def golden_file(name, path):
    tensors = make_tensors(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return tensors


def refusal(capsys, *arguments):
    assert main(["import", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_import_then_sample(here, capsys):
    tensors = golden_file("ddpmpp", here / "net.safetensors")
    published = sum(value.numel() for key, value in tensors.items() if not key.endswith("resample_filter"))
    assert main(["import", "net.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "note: took the method to be EDM: 2-RF++ has the same networks, and needs --method rfpp" in said
    assert f"models/net: UNet of {published:,} parameters, images 1x12x12\n" in said
    assert "heun in 18 steps; next: genflow sample models/net" in said
    assert sorted(p.name for p in (here / "models").iterdir()) == ["net"]  # nothing half-written beside it
    denoiser = Denoiser.from_pretrained(here / "models/net")
    assert (denoiser.schedule, denoiser.parameterization) == (VE(), Karras())
    with np.load(HERE / "ddpmpp.npz") as file:
        x, c, raw = (torch.from_numpy(file[key]) for key in ("x", "c_noise", "raw"))
    torch.testing.assert_close(denoiser.backbone(x, c), raw, rtol=0, atol=1e-5)
    assert main(["sample", "models/net", "--num", "2", "--steps", "2", "--device", "cpu", "--out", "s"]) == 0
    assert len(list((here / "s").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [("ddpmpp", [], "EDM"), ("adm", ["--method", "edm"], "EDM"), ("rfpp-adm", ["--method", "rfpp"], "2-RF++")],
)
def test_where_the_weights_came_from_is_written_beside_the_model(name, options, method, here, capsys):
    (here / "deep").mkdir()
    golden_file(name, here / "deep/net.safetensors")
    assert main(["import", "deep/net.safetensors", "--out", "m", *options]) == 0
    said = [line.removeprefix("note: ") for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert json.loads((here / "m/import.json").read_text()) == {
        "source": "net.safetensors",
        "sha256": hashlib.sha256((here / "deep/net.safetensors").read_bytes()).hexdigest(),
        "method": method,
        "notes": said,
    }
    assert len(said) >= 1
    files = {"denoiser", "import.json", "model_index.json", "recipe.toml"}
    assert {p.name for p in (here / "m").iterdir()} == files
    alone, whole = Denoiser.from_pretrained(here / "m"), GenflowPipeline.from_pretrained(str(here / "m")).denoiser
    for key, value in alone.state_dict().items():
        assert torch.equal(whole.state_dict()[key], value)


def test_method_rfpp_from_a_training_state(here, capsys):
    tensors = golden_file("rfpp-adm", here / "x.safetensors")
    torch.save({"model_state_dict": tensors, "iter": 7}, here / "state.pth")
    assert main(["import", "state.pth", "--method", "rfpp", "--out", "deep/er"]) == 0
    assert "took the method" not in capsys.readouterr().out
    denoiser = Denoiser.from_pretrained(here / "deep/er")
    assert denoiser.schedule == Linear()
    assert denoiser.parameterization == Karras(level_min=RFPP_LEVELS[0], level_max=RFPP_LEVELS[1])
    assert (denoiser.sampler, denoiser.steps, denoiser.num_classes) == ("euler", 2, 4)


def test_head_channels_are_passed_on(here):
    golden_file("adm-heads", here / "x.safetensors")
    assert main(["import", "x.safetensors", "--out", "m", "--head-channels", "8"]) == 0
    assert Denoiser.from_pretrained(here / "m").config["network"]["arguments"]["head_channels"] == 8


def test_dit_is_recognised_and_its_heads_passed_on(here, capsys):
    about = json.loads((HERE.parent / "dit/coarse.json").read_text(encoding="utf-8"))
    width = about["shapes"]["pos_embed"][2]
    tensors = fill(about["shapes"]) | {"pos_embed": grid_embedding(width, 3, 3)[None]}
    (here / "v1.5").mkdir()
    save_file(tensors, here / "v1.5/x.safetensors")
    assert main(["import", "v1.5", "--heads", str(about["heads"])]) == 0
    assert "models/v1.5: DiT of" in capsys.readouterr().out
    network = Denoiser.from_pretrained(here / "models/v1.5").config["network"]
    assert (network["class"], network["arguments"]["heads"]) == ("DiT", about["heads"])


@pytest.mark.parametrize("given", ["published", "file"])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("inner", ["", "transformer"])
def test_a_diffusers_folder_tells_its_heads_and_size(inner, binary, given, here, capsys):
    """Its weights alone tell neither; everything else of it is compared with diffusers beside the import itself."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        sample_size=6, in_channels=3, patch_size=2, num_attention_heads=3, attention_head_dim=8, num_layers=1
    )
    for name, value in network.state_dict().items():
        if "emb" in name:
            value.zero_()  # alike in all blocks
    network.save_pretrained(here / "published" / inner, safe_serialization=not binary)
    file = next(p for p in (here / "published" / inner).iterdir() if p.suffix != ".json")
    assert file.suffix == (".bin" if binary else ".safetensors")
    source = "published" if given == "published" else str(file)
    assert main(["import", source, "--out", "m"]) == 0
    arguments = Denoiser.from_pretrained(here / "m").config["network"]["arguments"]
    assert (arguments["heads"], arguments["image_size"], arguments["width"]) == (3, [6, 6], 24)
    told = json.loads((here / "m/import.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    name = "published" if given == "published" else file.name
    assert (told["source"], told["sha256"], told["method"]) == (name, digest, "DiT")
    for damaged in ("{", "[3]"):
        (here / "published" / inner / "config.json").write_text(damaged)
        assert "config.json is damaged" in refusal(capsys, source, "--out", "again")


def test_an_existing_folder_is_never_overwritten(here, capsys):
    golden_file("ddpmpp", here / "x.safetensors")
    (here / "full").mkdir()
    (here / "full/mine.txt").write_text("mine")
    assert "full exists already: give another --out" in refusal(capsys, "x.safetensors", "--out", "full")
    assert "exists already" in refusal(capsys, "x.safetensors", "--out", "x.safetensors")
    (here / "empty").mkdir()
    assert main(["import", "x.safetensors", "--out", "empty"]) == 0
    assert [p.name for p in (here / "full").iterdir()] == ["mine.txt"]


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(here, capsys):
    save_file({"other.weight": torch.ones(2)}, here / "x.safetensors")
    assert "neither of EDM's networks nor a DiT (a key is other.weight)" in refusal(capsys, "x.safetensors")
    assert "no key like enc.32x32_conv" in refusal(capsys, "x.safetensors", "--method", "edm")
    assert "there is no file or folder nowhere.pt" in refusal(capsys, "nowhere.pt")
    tensors = golden_file("ddpmpp", here / "y.safetensors")
    tensors.pop("model.map_layer1.bias")
    save_file(tensors, here / "y.safetensors")
    assert "lack map_layer1.bias" in refusal(capsys, "y.safetensors")
    assert sorted(p.name for p in here.iterdir()) == ["x.safetensors", "y.safetensors"]
