import getpass
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from figures import result
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from PIL import Image, PngImagePlugin
from small import make_config

from genflow import __version__
from genflow.build import build_denoiser, export
from genflow.card import Imported, model_card
from genflow.cli.main import main
from genflow.config import (
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConstantConfig,
    DataConfig,
    GridLevelsConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    RegressionConfig,
    VGGConfig,
)
from genflow.config_files import find_recipe, load_config, to_toml
from genflow.denoiser import Denoiser, weights_hash
from genflow.evaluation.protocol import Figure, Result, save_results
from genflow.parameterizations import PredictNoise
from genflow.pipeline import GenflowPipeline
from genflow.sampling.generate import generate
from genflow.schedules import DiscreteVP

SECRET = "/home/somebody/hidden"
SHARED = ["README.md", "config.toml", "denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors"]
SHARED += ["model_index.json", "preview.png"]


def private_config(folder: Path):
    """A configuration full of paths that are nobody's business."""
    config = make_config(folder)
    data = DataConfig(path=f"{SECRET}/photos", labels=f"{SECRET}/tables/labels.csv", flip=True)
    return replace(config, name="mine", out=f"{SECRET}/runs", init=f"{SECRET}/runs/parent/model", data=data)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """What a run leaves, in a place whose name must not be told."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hidden" / "runs" / "mine"
    denoiser = build_denoiser(make_config(folder), (1, 8, 8), 3)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, folder / "model")
    versions = f"# genflow {__version__}, python 3.11.7, torch 2.9.0+cpu\n# kept at {SECRET}\n"
    (folder / "config.toml").write_text(versions + to_toml(private_config(folder)))
    (folder / "log.jsonl").write_text('{"step": 4, "images": 32}\n{"step": 6, "images": 48}\n')
    for step in (3, 5):
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "previews").mkdir()
    told = PngImagePlugin.PngInfo()
    told.add_text("Source", SECRET)
    for step in (3, 5, 6):
        picture = Image.new("L", (10, 10), step)
        picture.save(folder / "previews" / f"step-{step:08d}.png", pnginfo=told)
    return folder


def measured(model: Path, value: float = 4.0, error: float | None = 0.2, **changes: Any) -> Result:
    """What `genflow fid` finds of a model, with invented numbers; for changes see ``figures.result``."""
    own = {"samples__name": f"{SECRET}/runs/mine", "reference__name": f"{SECRET}/photos-test"}
    own |= {"samples__sampling__weights": weights_hash(Denoiser.from_pretrained(model))}
    own |= {"samples__sampling__steps": 2, "samples__sampling__calls": 2}
    return result(value, error, **(own | changes))


WHOLE: dict[str, Any] = {
    "distances": (3.0, 4.0, 5.0),
    "per_class": {"somebody": Figure(value=1.0)},
    "figures": {
        "fd": Figure(value=4.0, standard_error=0.58, limit=3.5, interval=(3.0, 4.0)),
        "floor": Figure(value=1.6),
        "memorising": Figure(value=0.93),
        "accuracy": Figure(value=0.5),
    },
    "notes": (
        f"{SECRET}/photos-test has only 599 images",
        "codec differs: samples png/jpeg",
        "see /etc/hidden for more",
        "kept in C:\\hidden",
        "or '../hidden'",
    ),
}


def dry(run: Path, *options: object) -> Path:
    """Write what would be shared, and return its folder."""
    out = Path("shared")
    assert main(["push", str(run), "--repo", "me/mine", "--dry-run", "--out", str(out), *map(str, options)]) == 0
    return out


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def table(text: str, first: str, row: int = 0) -> dict[str, str]:
    """One row of the Markdown table whose header begins with `first`."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {first} |"))
    head, body = ([cell.strip() for cell in lines[k].strip("|").split("|")] for k in (start, start + 2 + row))
    return dict(zip(head, body, strict=True))


# What is shared


def test_the_shared_folder_holds_the_model_and_loads_as_it_was(run) -> None:
    out = dry(run)
    assert names(out) == SHARED
    seeds, labels = range(3), [0, 1, 2]
    original = Denoiser.from_pretrained(run / "model")
    for loaded in (Denoiser.from_pretrained(out), GenflowPipeline.from_pretrained(out).denoiser):
        assert weights_hash(loaded) == weights_hash(original)
        assert torch.equal(generate(loaded, seeds, labels=labels), generate(original, seeds, labels=labels))
    with Image.open(out / "preview.png") as picture:
        assert picture.getpixel((0, 0)) == 5  # the newest one that is not newer than the model


def test_no_local_path_is_told_anywhere(run) -> None:
    save_results(run / "fid.json", [measured(run / "model", **WHOLE)])
    out = dry(run)
    content = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for path, data in content.items():
        for word in (b"hidden", b"somebody", b"/home", str(run.parent).encode()):
            assert word not in data, path
    shared = load_config(out / "config.toml")
    assert (shared.data.path, shared.data.labels, shared.out, shared.init) == ("photos", "labels.csv", "runs", "parent")
    assert replace(shared, out="", init="", data=DataConfig()) == replace(
        load_config(run / "config.toml"), out="", init="", data=DataConfig()
    )


USER = getpass.getuser()


def told(run: Path, config: Config) -> Config:
    """The recipe that is shared of this one."""
    (run / "config.toml").write_text(to_toml(config))
    found = load_config(dry(run) / "config.toml")
    shutil.rmtree("shared")
    return found


@pytest.mark.parametrize(
    ("given", "shared", "data_set"),
    [
        ("digits", "digits", None),
        ("/home/me/photos", "photos", None),
        ("~/photos/", "photos", None),
        ("../photos", "photos", None),
        ("C:\\Users\\me\\photos", "photos", None),
        ("/home/me/photos.zip", "photos.zip", None),
        ("/home/me/digits", "./digits", None),
        ("hf:owner/name", "hf:owner/name", "owner/name"),
        ("hf:owner/name?split=all&image=img", "hf:owner/name?split=all&image=img", "owner/name"),
        ("hf:name", "hf:name", "name"),
        ("hf:here/photos", "hf:here/photos", "here/photos"),
        ("hf:./here/photos", "hf:./photos", None),
        ("hf:../photos?split=all", "hf:./photos?split=all", None),
        ("hf:~/photos", "hf:./photos", None),
        ("hf:C:\\Users\\me\\photos", "hf:./photos", None),
        ("hf:/home/me/photos?label=", "hf:./photos?label=", None),
        ("hf:/home/me", "hf:./data", None),
        ("here/photos", "photos", None),
        ("/home/me", "data", None),
        ("/mnt/home/me/", "data", None),
        ("C:\\Users\\me", "data", None),
        (f"/scratch/{USER}", "data", None),
        (f"/scratch/{USER}/photos", "photos", None),
        (str(Path.home()), "data", None),
        ("~", "data", None),
        ("..", "data", None),
    ],
)
def test_data_are_named_without_the_way_to_them(given: str, shared: str, data_set: str | None, run) -> None:
    Path("here/photos").mkdir(parents=True)  # what lies here must not matter
    config = replace(make_config(run), data=DataConfig(path=given))
    found = told(run, config)
    assert (found.data.path, found.out) == (shared, "runs")
    assert told(run, found) == found
    card = ModelCard.load(dry(run) / "README.md")
    assert card.data.to_dict().get("datasets") == (data_set and [data_set])
    assert ("a set that comes with genflow" in card.text) == (given == "digits")


@pytest.mark.parametrize("metric", [LPIPSConfig, LPIPSHuberConfig])
def test_weights_of_a_perceptual_network_are_named_without_the_way_to_them(metric, run) -> None:
    described = metric(perceptual=VGGConfig(weights=f"{SECRET}/vgg.pth"), divide_by_t=True)
    config = replace(make_config(run), objective=RegressionConfig(metric=described, label_dropout=0.25))
    shared = told(run, config)
    expected = metric(perceptual=VGGConfig(weights="vgg.pth"), divide_by_t=True)
    assert shared.objective == replace(config.objective, metric=expected)
    assert "hidden" not in (dry(run) / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "shared", "base"),
    [
        ("", "", None),
        ("hf:owner/name", "hf:owner/name", "owner/name"),
        ("hf:here/model", "hf:here/model", "here/model"),
        ("owner/name", "name", None),
        ("here/model", "here", None),
        ("runs/old/model", "old", None),
        ("runs/old/best", "old", None),
        ("/x/y/", "y", None),
        ("hf:/home/me/start", "start", None),
        ("/home/me", "model", None),
        ("/home/me/model", "model", None),
        (f"/scratch/{USER}/model", "model", None),
        (str(Path.home()), "model", None),
    ],
)
def test_the_model_started_from_is_named_without_the_way_to_it(given, shared, base, run) -> None:
    Path("here/model").mkdir(parents=True)
    found = told(run, replace(make_config(run), init=given))
    assert found.init == shared
    assert told(run, found) == found
    assert ModelCard.load(dry(run) / "README.md").data.to_dict().get("base_model") == base


@pytest.mark.parametrize(("given", "shared"), [("/home/me/runs/edm/model", "edm"), ("hf:owner/edm", "hf:owner/edm")])
def test_a_teacher_is_named_without_the_way_to_it(given: str, shared: str, run) -> None:
    objective = ConsistencyConfig(
        levels=GridLevelsConfig(curriculum=ConstantConfig(count=18)), descent=ByTeacherConfig(teacher=given)
    )
    config = replace(make_config(run), objective=objective)
    found = told(run, config)
    assert found.objective == replace(objective, descent=ByTeacherConfig(teacher=shared))
    text = (dry(run) / "README.md").read_text(encoding="utf-8")
    assert "/home" not in text
    assert f"taught by the flow of the model `{shared}`, a step of Heun at a time" in text
    assert f"It was taught by the model `{shared}`; if that is others' work, its terms may apply to it too." in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ct-cifar10", "Consistency training, without a teacher (CT, arXiv 2303.01469)."),
        ("cd-cifar10", "Consistency distillation (CD, arXiv 2303.01469): taught by the flow of the model"),
        ("tiny-ict", "Improved consistency training, without a teacher (iCT, arXiv 2310.14189)."),
        ("ect-cifar10", "A diffusion model that was tuned into a consistency model (ECT, arXiv 2406.14548)."),
    ],
)
def test_the_kind_of_consistency_model_is_named(name: str, said: str, run) -> None:
    (run / "config.toml").write_text(to_toml(load_config(find_recipe(name))))
    assert said in (dry(run) / "README.md").read_text(encoding="utf-8")


# Which of a run's models, and what belongs to it


@pytest.mark.parametrize("place", ["model", "."])
def test_the_model_of_a_run_is_shared_like_the_run(place: str, run, monkeypatch) -> None:
    save_results(run / "fid.json", [measured(run / "model")])
    whole = {p.relative_to("shared"): p.read_bytes() for p in dry(run).rglob("*") if p.is_file()}
    shutil.rmtree("shared")
    given = run / "model"
    if place == ".":
        monkeypatch.chdir(given)
        given = Path()
    inner = {p.relative_to("shared"): p.read_bytes() for p in dry(given).rglob("*") if p.is_file()}
    assert inner == whole


@pytest.mark.parametrize(
    ("log", "step", "pixel"),
    [
        (
            [{"step": 3, "frechet_train": 2.5}, {"step": 5, "frechet_train": 2.0}, {"step": 6, "frechet_train": 2.0}],
            5,
            5,
        ),
        ([{"step": 4, "frechet_train": 2.0}, {"step": 5, "frechet_train": 7.0}, {"step": 6, "loss": 0}], 4, 3),
        ([{"step": 2, "frechet_train": 2.0}, {"step": 6, "frechet_train": None}], 2, None),
        ([{"step": 6, "loss": 0.1}], None, None),
    ],
)
def test_the_best_model_is_told_from_the_last(log: list[dict], step: int | None, pixel: int | None, run) -> None:
    torch.manual_seed(2)
    best = build_denoiser(make_config(run), (1, 8, 8), 3)
    for p in best.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(best, run / "best")
    lines = [json.dumps(line) for line in log]
    (run / "log.jsonl").write_text("\n".join([*lines, '{"step": 1, "frechet_tra']))  # as a killed run leaves it
    save_results(run / "fid-last.json", [measured(run / "model", 9.0)])
    save_results(run / "fid-best.json", [measured(run / "best", 8.0)])
    out = dry(run / "best")
    assert weights_hash(Denoiser.from_pretrained(out)) == weights_hash(Denoiser.from_pretrained(run / "best"))
    text = (out / "README.md").read_text()
    told = "the step that it was taken at is not recorded."
    if step is not None:
        told = f"by its log after {step} steps of 8 images, {8 * step} images in all; the recipe asks for 8 steps."
    assert f"The run's model of the lowest in-training distance{';' if step is None else ','} {told}" in text
    assert table(text, "figure")["value"] == "8.00 ± 0.20"
    assert (out / "preview.png").exists() == (pixel is not None)
    if pixel is not None:
        with Image.open(out / "preview.png") as picture:
            assert picture.getpixel((0, 0)) == pixel
        assert f"after step {pixel}," in text


@pytest.mark.parametrize(("last", "steps", "pixel"), [(8, 8, 6), (6, None, None)])
def test_without_checkpoints_a_complete_log_tells_the_steps(last: int, steps, pixel, run) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "log.jsonl").write_text(f'{{"step": 4}}\n{{"step": {last}}}\n')
    out = dry(run)
    text = (out / "README.md").read_text()
    assert ("The number of steps taken is not recorded" in text) == (steps is None)
    assert ("8 steps of 8 images, 64 images in all. It" in text) == (steps is not None)
    assert (out / "preview.png").exists() == (pixel is not None)


# The card


def test_the_card_says_what_the_model_is(run) -> None:
    card = ModelCard.load(dry(run, "--license", "cc-by-4.0") / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["library_name"] == "genflow"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert not {"datasets", "base_model", "model-index"} & data.keys()
    row = table(card.text, "schedule")
    denoiser = Denoiser.from_pretrained(run / "model")
    assert row["schedule"] == "`Linear()`"
    assert row["parameterization"] == "`PredictVelocity(sigma_data=1.0)`"
    assert row["objective"] == "`Regression(times=Uniform(), residual=Raw(), metric=SquaredL2(), label_dropout=0.1)`"
    assert row["parameters"] == f"{sum(p.numel() for p in denoiser.parameters()):,}"
    for fact in (
        "arXiv 2209.03003",
        "8x8 grey images, 3 classes",
        "`photos`; the number of images is not recorded; 3 classes; half of the images mirrored",
        "half of its images mirrored, so left and right mean nothing",
        "An image generator trained with genflow:",
        "5 steps of 8 images, 40 images in all; the recipe asks for 8 steps. It started from the weights of `parent`.",
        f"genflow {__version__}, python 3.11.7, torch 2.9.0+cpu; shared by genflow {__version__}",
        "after step 5",
        "License: cc-by-4.0.",
        "The quality of its images has not been measured.",
        "Whether it reproduces training images has not been measured.",
    ):
        assert fact in card.text
    recipe = re.search(r"```toml\n(.*?)```", card.text, flags=re.DOTALL)
    assert recipe is not None
    shared = (run.parents[2] / "shared" / "config.toml").read_text()
    assert shared.endswith(recipe[1])


def test_names_on_the_hub_are_linked_and_a_license_is_not_invented(run) -> None:
    config = private_config(run)
    public = replace(config, init="hf:owner/start", data=DataConfig(path="hf:owner/images?split=all"))
    (run / "config.toml").write_text(to_toml(public))
    card = ModelCard.load(dry(run) / "README.md")
    data = card.data.to_dict()
    assert data["datasets"] == ["owner/images"]
    assert data["base_model"] == "owner/start"
    assert "It started from the weights of `owner/start`." in card.text
    assert "license" not in data
    assert "has not chosen a license" in card.text


def test_an_embedded_set_is_counted(run) -> None:
    (run / "config.toml").write_text(to_toml(replace(private_config(run), data=DataConfig(path="digits"))))
    text = (dry(run) / "README.md").read_text()
    assert "`digits`, a set that comes with genflow; 1,198 training images; 3 classes." in text
    assert "terms under which" not in text


def test_the_python_of_the_card_runs(run, monkeypatch) -> None:
    out = dry(run)
    block = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) == 5
    assert block[1].count('"me/mine"') == 1
    made: dict = {}
    exec(compile(block[1].replace("me/mine", str(out)), "README.md", "exec"), made)
    assert made["images"].shape == (16, 1, 8, 8)
    with Image.open("samples.png") as picture:
        assert picture.width > 4 * 48


@pytest.mark.parametrize(("flip", "augment"), [(False, 0.0), (False, 0.12), (True, 0.12)])
def test_the_card_tells_what_was_done_to_the_images(flip: bool, augment: float, run) -> None:
    (run / "config.toml").write_text(to_toml(replace(make_config(run), data=DataConfig(flip=flip, augment=augment))))
    text = (dry(run) / "README.md").read_text()
    assert ("; half of the images mirrored" in text) == flip
    assert ("mean nothing in what it draws" in text) == flip
    assert ("each operation with probability 0.12, of which the network was told" in text) == bool(augment)
    assert ("images that were mirrored, scaled, turned and moved" in text) == bool(augment)


def test_a_bare_model_is_shared_with_what_is_known(run) -> None:
    shutil.copytree(run / "model", "bare")
    out = dry(Path("bare"))
    assert names(out) == [name for name in SHARED if name not in ("config.toml", "preview.png")]
    text = (out / "README.md").read_text()
    assert text.count("Not recorded with the model.") == 2
    assert "trained with genflow" not in text
    assert table(text, "schedule")["objective"] == "not recorded"
    assert "preview.png" not in text
    again = Path("again")  # what was shared can be shared again
    assert main(["push", str(out), "--repo", "me/other", "--dry-run", "--out", str(again)]) == 0
    assert names(again) == names(out)


# Imported weights

IMPORT = {"source": f"{SECRET}/edm-cifar10.safetensors", "sha256": "ab" * 32, "method": "EDM"}
IMPORT |= {"notes": ["took the method\nto be EDM", "left 2 weights out"]}


@pytest.mark.parametrize("license", ["", "cc-by-nc-sa-4.0"])
def test_an_imported_model_is_told_from_a_trained_one(license: str, run, capsys) -> None:
    shutil.copytree(run / "model", "edm")
    Path("edm/import.json").write_text(json.dumps(IMPORT))
    out = dry(Path("edm"), *(["--license", license] if license else []))
    assert names(out) == sorted({*SHARED, "import.json"} - {"config.toml", "preview.png"})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("note: others published these weights, and their terms apply")
    assert "--license must agree with them" in shown[0]
    assert json.loads((out / "import.json").read_text()) == IMPORT | {"source": "edm-cifar10.safetensors"}
    card = ModelCard.load(out / "README.md")
    assert "trained with genflow" not in card.text
    assert "An image generator imported from published weights (EDM): 8x8 grey" in card.text
    told = f"mported from published weights (EDM, file `edm-cifar10.safetensors`, sha256 `{'ab' * 32}`)"
    assert told in card.text
    assert "\n- took the method to be EDM\n- left 2 weights out\n" in card.text
    assert "partly non-commercial" in card.text
    assert card.data.to_dict().get("license") == (license or None)
    said = f"License, as given by who shared it: {license}; it must agree with those terms."
    assert (said if license else "No license is stated here.") in card.text
    again = Path("again")
    assert main(["push", str(out), "--repo", "me/other", "--dry-run", "--out", str(again)]) == 0
    assert (again / "import.json").read_bytes() == (out / "import.json").read_bytes()


@pytest.mark.parametrize(
    "changes", [{"source": None}, {"sha256": 1}, {"method": ["EDM"]}, {"notes": [1]}, {"notes": ""}]
)
def test_a_damaged_record_of_the_import_is_refused(changes: dict, run, capsys) -> None:
    shutil.copytree(run / "model", "edm")
    Path("edm/import.json").write_text(json.dumps(IMPORT | changes))
    assert "edm/import.json is not what `genflow import` writes" in refused(capsys, "edm", "--dry-run")


# Latents


@pytest.mark.parametrize(
    ("origin", "named"),
    [
        (None, False),
        (Imported(method="EDM", source="a.pt", sha256="0", notes=()), False),
        (Imported(method="DiT", source="a.pt", sha256="0", notes=()), True),
    ],
)
def test_the_card_of_a_latent_model_says_so(origin: Imported | None, named: bool, tmp_path, capsys) -> None:
    denoiser = build_denoiser(make_config(tmp_path), (4, 8, 8), 3)
    text = model_card(denoiser, "me/mine", origin=origin, figures=[], license="", preview="")
    assert "8x8 latents of 4 channels, 3 classes" in text
    assert "The images are latents: decode them with the autoencoder that they were made with." in text
    assert ("AutoencoderKL" in text) == ("/ autoencoder.config.scaling_factor" in text) == named
    assert "0.18215" not in text
    assert "GenflowPipeline" not in text  # it gives pictures
    export(denoiser, tmp_path / "saved")
    block = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    made: dict = {}
    exec(compile(block[1].replace("me/mine", str(tmp_path / "saved")), "README.md", "exec"), made)
    assert capsys.readouterr().out == "torch.Size([16, 4, 8, 8])\n"
    assert made["images"].dtype == torch.float32


def test_a_long_table_of_betas_is_written_by_its_ends(run) -> None:
    backbone = Denoiser.from_pretrained(run / "model").backbone
    denoiser = Denoiser(backbone, DiscreteVP(), PredictNoise(), image_shape=(1, 8, 8), num_classes=3)
    text = model_card(denoiser, "me/mine", origin=None, figures=[], license="", preview="")
    assert table(text, "schedule")["schedule"] == "`DiscreteVP(betas=1000 from 0.0001 to 0.02)`"
    assert "arXiv 2006.11239" in text


# Figures


def test_a_figure_stands_with_its_protocol_in_text_and_front_matter(run) -> None:
    save_results(run / "fid.json", [measured(run / "model", **WHOLE)])
    (run / "notes.json").write_text('{"distance": 1}')  # not a figure of a model
    save_results(run / "folder.json", [measured(run / "model", samples__sampling=None)])  # nor this
    other = Path("more.json")
    few = {"network__name": "inception", "samples__n": 100, "samples__sampling__guidance": 1.5}
    save_results(other, [measured(run / "model", 7.25, None, **few, samples__sampling__steps=1)])
    card = ModelCard.load(dry(run, "--figures", other, run / "fid.json") / "README.md")
    results = vars(card.data)["eval_results"]
    assert {(r.metric_type, r.metric_name, r.metric_value) for r in results} == {
        ("fid", "FID-100[inception-tf,uint8,raw]", 7.25),
        ("frechet-distance", "FD-599[digits,uint8,raw]", 4.0),
    }
    whole = next(r for r in results if r.metric_value == 4.0)
    assert whole.dataset_name == "photos-test"
    assert whole.metric_args == {
        "weights": weights_hash(Denoiser.from_pretrained(run / "model")),
        "sampler": "euler",
        "steps": 2,
        "calls": 2,
        "guidance": 1.0,
        "first_seed": 0,
        "labels": "as the reference's",
        "times": "the schedule's",
        "ema": "half-life 9",
        "samples": 599,
        "seed_ranges": 3,
        "quantisation": "uint8",
        "reference": "photos-test",
        "reference_images": 599,
        "reference_split": "test",
        "reference_hash": "ab" * 6,
        "features": "digits",
        "features_weights": "ef" * 6,
        "features_dtype": "float32",
        "standard_error": 0.58,
        "limit": 3.5,
        "interval": [3.0, 4.0],
        "floor": 1.6,
        "memorising": 0.93,
        "accuracy": 0.5,
    }
    first = table(card.text, "figure")
    assert (first["figure"], first["value"], first["floor"]) == ("FID-100[inception-tf,uint8,raw]", "7.250", "")
    for part in ("euler, 1 step, 2 network calls, guidance 1.5", "reference: photos-test", "599 images", "100 images"):
        assert part in first["protocol"]
    shown = table(card.text, "figure", row=1)
    assert (shown["value"], shown["n -> infinity"]) == ("4.00 ± 0.58", "3.50 [3.00, 4.00]")
    assert (shown["floor"], shown["memorising"], shown["asked class"]) == ("1.600", "0.93", "50.0%")
    assert "has not been measured" not in card.text


def test_every_number_of_steps_of_a_file_is_shown(run) -> None:
    steps = [measured(run / "model", 9.0 / k, samples__sampling__steps=k) for k in (1, 2, 4)]
    save_results(run / "fid.json", steps)
    card = ModelCard.load(dry(run) / "README.md")
    assert [r.metric_args["steps"] for r in vars(card.data)["eval_results"]] == [1, 2, 4]
    assert ["1 step," in table(card.text, "figure", row=k)["protocol"] for k in range(3)] == [True, False, False]


def test_warnings_are_shared_unless_they_tell_a_path(run) -> None:
    save_results(run / "fid.json", [measured(run / "model", **WHOLE)] * 2)
    text = (dry(run) / "README.md").read_text()
    assert text.count("- photos-test has only 599 images") == 1
    assert "- codec differs: samples png/jpeg" in text
    assert "for more" not in text


def test_what_fid_writes_is_accepted(run) -> None:
    asked = ["--features", "digits", "--steps", "1,2", "--out", str(run / "fid.json")]
    assert main(["fid", str(run), str(photos(run)), *asked]) == 0
    text = (dry(run) / "README.md").read_text()
    for k in range(2):
        value = json.loads((run / "fid.json").read_text())["results"][k]["figures"]["fd"]["value"]
        shown = float(table(text, "figure", row=k)["value"].split(" ± ")[0])
        assert shown == pytest.approx(value, rel=0.01)


def photos(run: Path) -> Path:
    folder = run.parent / "photos"
    for k in range(3):
        for n in range(70):
            (folder / str(k)).mkdir(parents=True, exist_ok=True)
            Image.frombytes("L", (8, 8), torch.randint(256, (64,), dtype=torch.uint8).numpy().tobytes()).save(
                folder / str(k) / f"{n}.png"
            )
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples__sampling__weights": "0" * 64}, "holds figures of another model"),
        ({"samples__sampling": None}, "measured a folder of images, not a model"),
        ({"samples__n": None}, "lacks samples.n, without which"),
        ({"samples__quantisation": None, "network__weights": None}, "lacks samples.quantisation and network.weights"),
        ({"figures": {"fd": Figure(value=float("nan"))}}, "figure.json"),
    ],
)
def test_figures_that_cannot_be_told_are_refused(changes, said, run, capsys) -> None:
    record = {"format": 2, "results": [asdict(measured(run / "model")), asdict(measured(run / "model", **changes))]}
    Path("figure.json").write_text(json.dumps(record))
    message = refused(capsys, run, "--dry-run", "--figures", "figure.json")
    assert said in message
    assert "figure.json" in message


@pytest.mark.parametrize("place", ["given", "found"])
def test_files_of_an_older_format_are_to_be_measured_anew(place: str, run, capsys) -> None:
    path = run / "fid.json" if place == "found" else Path("old.json")
    path.write_text(json.dumps({"distance": 4.0, "weights": "0" * 64, "sampler": "euler", "features": "digits:ab"}))
    given = [] if place == "found" else ["--figures", path]
    message = refused(capsys, run, "--dry-run", *given)
    assert f"{path.name} is not a file that `genflow fid --out` wrote (format 2): measure anew" in message


def test_what_a_figure_leaves_open_is_not_told(run) -> None:
    save_results(run / "fid.json", [measured(run / "model")])
    text = (dry(run) / "README.md").read_text()
    assert {*table(text, "figure")} == {"figure", "value", "protocol"}
    assert "Whether it reproduces training images has not been measured." in text


def test_figures_of_another_model_in_the_run_are_refused_too(run, capsys) -> None:
    save_results(run / "fid.json", [measured(run / "model", samples__sampling__weights="0" * 64)])
    message = refused(capsys, run, "--dry-run")
    assert "fid.json holds figures of another model" in message


# Refusals


def refused(capsys, run: object, *options: object, repo: str = "me/mine") -> str:
    """Run the command, and return the one line in which it refuses; nothing is left behind."""
    before = set(Path.cwd().rglob("*"))
    code = main(["push", str(run), "--repo", repo, *map(str, options)])
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, ""), shown
    assert shown.err.startswith("genflow: ")
    assert shown.err.count("\n") == 1
    assert set(Path.cwd().rglob("*")) == before
    return shown.err


@pytest.mark.parametrize(
    "repo", ["mine", "a/b/c", "me/", "/mine", "me/mi ne", "me/a--b", "me/" + "x" * 100, "me/x.git"]
)
def test_a_malformed_repository_is_refused(repo: str, run, capsys) -> None:
    assert "is not OWNER/NAME" in refused(capsys, run, "--dry-run", repo=repo)


def test_what_cannot_be_shared_is_refused(run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (tmp_path / "empty").mkdir()
    (run / "hub").mkdir()
    (tmp_path / "bad.json").write_text("{")
    assert "there is no run nowhere" in refused(capsys, "nowhere", "--dry-run")
    assert "empty holds no model" in refused(capsys, "empty", "--dry-run")
    assert "hub exists: remove it, or give another --out" in refused(capsys, run, "--dry-run")
    assert "--out is where --dry-run writes" in refused(capsys, run, "--out", "x")
    assert "--license 'my own' is not" in refused(capsys, run, "--dry-run", "--out", "x", "--license", "my own")
    assert "bad.json is not a file that `genflow fid --out` wrote, or it is damaged: measure anew" in refused(
        capsys, run, "--dry-run", "--out", "x", "--figures", "bad.json"
    )
    assert "absent.json is not there" in refused(capsys, run, "--dry-run", "--out", "x", "--figures", "absent.json")
    assert "run `hf auth login`" in refused(capsys, run)


def test_a_dry_run_writes_beside_the_run_and_lists_it(run, capsys) -> None:
    assert main(["push", str(run), "--repo", "me/mine", "--private", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{run / 'hub'}: what would be uploaded to me/mine (private)"
    assert [line.split()[0] for line in shown[1:]] == SHARED


# The hub


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """A hub that notes what it is asked for."""
    noted = SimpleNamespace(created=[], uploaded=[], files=[], private=False, error=None)

    class Api:
        def __init__(self, **options) -> None:
            pass

        def create_repo(self, repo_id: str, **options) -> str:
            if noted.error is not None:
                raise noted.error
            noted.created.append((repo_id, options))
            return f"https://huggingface.co/{repo_id}"

        def model_info(self, repo_id: str) -> SimpleNamespace:
            return SimpleNamespace(private=noted.private)

        def upload_folder(self, *, folder_path, **options) -> None:
            noted.uploaded.append(options)
            noted.files = names(Path(folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return noted


@pytest.mark.parametrize("private", [False, True])
def test_a_push_creates_the_repository_and_uploads_the_folder_once(private: bool, run, hub, capsys) -> None:
    hub.private = private
    before = names(run)
    assert main(["push", str(run), "--repo", "me/mine", *(["--private"] if private else [])]) == 0
    assert hub.created == [("me/mine", {"private": private or None, "exist_ok": True})]
    assert [u["repo_id"] for u in hub.uploaded] == ["me/mine"]
    assert hub.files == SHARED
    assert names(run) == before
    assert capsys.readouterr().out == "https://huggingface.co/me/mine: 6 files uploaded\n"


def test_an_upload_removes_what_an_earlier_one_left_and_nothing_else(run, hub) -> None:
    shutil.copytree(run / "model", "bare")
    assert main(["push", "bare", "--repo", "me/mine"]) == 0
    stale = ["config.toml", "preview.png", "import.json", "denoiser/diffusion_pytorch_model.safetensors.index.json"]
    stale += ["denoiser/diffusion_pytorch_model-00001-of-00002.safetensors"]
    of_owner = [".gitattributes", "LICENSE", "notes/config.toml", "pictures/preview.png", "my-preview.png"]
    of_owner += ["denoiser/notes.md", "config.toml.orig", "fid.json"]
    there = [*stale, *of_owner, *hub.files]
    removed = filter_repo_objects(there, allow_patterns=hub.uploaded[0]["delete_patterns"])
    assert set(removed) - set(hub.files) == set(stale)  # the hub's client overwrites what is uploaded


def test_what_should_be_private_is_not_uploaded_to_a_public_repository(run, hub, capsys) -> None:
    assert "me/mine exists and is public" in refused(capsys, run, "--private")
    assert hub.uploaded == []


def answer(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return HfHubHTTPError(f"{status} Client Error\nYou may not do that.", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answer(401), "the hub refused me/mine (401): the token is not valid: run `hf auth login`"),
        (answer(403), "the hub refused me/mine (403): 403 Client Error"),
        (LocalTokenNotFoundError("Token is required"), "the hub wants a token: run `hf auth login`"),
        (OfflineModeIsEnabled("offline mode is enabled"), "cannot reach the hub (offline mode is enabled)"),
        (HfHubHTTPError.__mro__[1]("no route to host"), "cannot reach the hub (no route to host)"),
    ],
    ids=["401", "403", "no token", "offline", "no network"],
)
def test_what_the_hub_does_not_take_is_said_in_one_line(error, said, run, hub, capsys) -> None:
    hub.error = error
    assert said in refused(capsys, run)
    assert hub.uploaded == []


def test_the_real_client_says_that_it_is_offline(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    assert "cannot reach the hub" in refused(capsys, run)


def test_a_run_that_started_from_other_weights_says_that_their_terms_apply(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["train", "tiny-edm", "--backbone.width", "16", "--train.batch-size", "8", "--train.steps", "1"]
    assert main([*tiny, "--name", "first"]) == 0
    assert main([*tiny, "--name", "second", "--init", "runs/first/model"]) == 0
    for name, told in (("first", False), ("second", True)):
        assert main(["push", f"runs/{name}", "--repo", "me/it", "--dry-run", "--out", f"card-{name}"]) == 0
        card = (tmp_path / f"card-{name}" / "README.md").read_text(encoding="utf-8")
        assert ("their terms apply to it too" in card) == told


def test_a_consistency_models_run_is_shared_with_its_own_times(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["train", "tiny-ict", "--backbone.width", "16", "--train.batch-size", "8", "--train.steps", "5"]
    assert main(tiny) == 0
    assert (
        main(["fid", "runs/tiny-ict", "digits", "--steps", "1,2", "--num", "64", "--out", "runs/tiny-ict/a.json"]) == 0
    )
    out = dry(Path("runs/tiny-ict"))
    card = ModelCard.load(out / "README.md")
    for said in (
        "the preconditioning of consistency models (arXiv 2303.01469). Improved consistency training",
        "the sampler `multistep` in 1 step: 1 network call. It brings time grids of its own for 2 steps.",
        "`VE(sigma_min=0.002, sigma_max=80.0, rho=7.0)`",
        "2 network calls, at times 80 0.821 0",
        "so guidance does not work and labels must be given",
    ):
        assert said in card.text
    results = card.data.to_dict()["model-index"][0]["results"]
    assert [m["args"]["times"] for each in results for m in each["metrics"]] == ["the schedule's", "80 0.821 0"]
    loaded = Denoiser.from_pretrained(out)
    assert loaded.times == {"2": [80.0, 0.821, 0.0]}
