"""A model's recipe: what it is built from gives the same outputs, and what it cannot express is refused."""

import json

import pytest
import torch
from goldens.make_edm import HERE, RFPP, make_tensors
from goldens.weights import fill
from PIL import Image

from genflow.build import build_denoiser
from genflow.build_objective import build_times
from genflow.cli.main import main
from genflow.config import LogNormalConfig, UniformConfig
from genflow.config_files import load_config, to_toml
from genflow.denoiser import Denoiser
from genflow.nn import DiT, UNet
from genflow.nn.embeddings import grid_embedding
from genflow.parameterizations import ConsistencyKarras, Converted, Karras, PredictNoise, PredictV, PredictVelocity
from genflow.published.recipe import recipe
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Trig, linear_betas

torch.set_num_threads(1)


def awake(network):
    """A fresh network returns 0: fill it, or equality of outputs would say nothing."""
    state = network.state_dict()
    network.load_state_dict(fill({name: value.shape for name, value in state.items()}))
    return network


def denoiser(schedule=None, parameterization=None, backbone=None, **changed):
    given = {"image_shape": (1, 8, 8), "num_classes": 3, "sampler": "heun", "steps": 7} | changed
    tiny = {"image_size": (8, 8), "in_channels": 1, "num_classes": given["num_classes"], "width": 16, "depth": 1}
    backbone = backbone or awake(DiT(**tiny, heads=2, mlp_ratio=1.7))
    return Denoiser(backbone, schedule or VE(), parameterization or Karras(), **given).eval()


def same_outputs(built, original):
    built.eval()
    t = torch.linspace(0.1, 0.9, 3).double() * original.schedule.t_max
    x = torch.randn(3, *original.image_shape)
    y = torch.arange(3) if original.num_classes else None
    expected = original.denoise(x, t, y)
    assert expected.std() > 0.01
    assert torch.equal(built.denoise(x, t, y), expected)
    assert built.schedule == original.schedule
    assert built.parameterization == original.parameterization
    assert (built.sampler, built.steps) == (original.sampler, original.steps)


def import_dit(folder):
    about = json.loads((HERE.parent / "dit/latents.json").read_text(encoding="utf-8"))
    torch.save(fill(about["shapes"]) | {"pos_embed": grid_embedding(48, 4, 4)[None]}, folder / "x.pt")
    return ["--heads", str(about["heads"])]


def import_edm(name, folder):
    golden = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    torch.save(make_tensors(golden), folder / "x.pt")
    return ["--method", "rfpp" if name in RFPP else "edm", "--head-channels", str(golden["head_channels"])]


@pytest.mark.parametrize(
    "name", ["ddpmpp", "ddpmpp-labels", "ncsnpp", "ncsnpp-labels", "adm", "adm-heads", "rfpp-ncsnpp", "rfpp-adm", "dit"]
)
def test_an_imported_model_is_built_again_from_its_recipe(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = import_dit(tmp_path) if name == "dit" else import_edm(name, tmp_path)
    assert main(["import", "x.pt", "--out", "models/net", *options]) == 0
    config = load_config(tmp_path / "models/net/recipe.toml")
    original = Denoiser.from_pretrained("models/net").eval()
    channels, side, _ = original.image_shape
    assert (config.init, config.name, config.optim.lr) == ("models/net", "net-tuned", 1e-4)
    same_outputs(build_denoiser(config, (channels, side, side), original.num_classes), original)
    law = LogNormalConfig() if original.schedule == VE() else UniformConfig()
    assert config.objective.times == law
    build_times(config, original.schedule)
    assert ("to fine-tune" in capsys.readouterr().out) == (channels in (1, 3))  # those of others are no pictures
    assert (config.data.size, config.data.channels) == (side, channels if channels in (1, 3) else 0)
    assert config.data.classes == (original.num_classes > 0)


def test_images_must_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = import_edm("ddpmpp", tmp_path)
    assert main(["import", "x.pt", "--out", "a net", *options]) == 0
    assert "to fine-tune: genflow train 'a net/recipe.toml' --data.path photos/\n" in capsys.readouterr().out
    assert main(["train", "a net/recipe.toml"]) == 2
    assert "no images called 'GIVE-YOUR-IMAGES'" in capsys.readouterr().err
    assert load_config(tmp_path / "a net/recipe.toml").name == "a-net-tuned"


def test_training_goes_on_from_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", "x.pt", "--out", "net", *import_edm("adm", tmp_path)]) == 0
    tiny = ["--train.steps", "2", "--train.batch-size", "4", "--train.preview-every", "0"]
    for k in range(8):
        place = tmp_path / "photos" / str(k % 3) / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (30 * k, 0, 0)).save(place)
    assert main(["train", "net/recipe.toml", "--data.path", "photos", *tiny]) == 0
    tuned = Denoiser.from_pretrained(tmp_path / "runs/net-tuned/model")
    assert (tuned.image_shape, tuned.num_classes) == ((1, 12, 12), 3)


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (VE(sigma_min=0.01, sigma_max=50.0, rho=5.0), Karras(sigma_data=0.3, level_min=0.01, level_max=50.0)),
        (VP(beta_d=10.0, beta_min=0.2), PredictV()),
        (DiscreteVP(), PredictNoise()),
        (DiscreteVP(betas=linear_betas(37, 1e-3, 0.07)), PredictNoise()),
        (Cosine(), PredictV()),
        (Linear(), PredictVelocity()),
        (Linear(), Converted(schedule=VP(beta_d=10.0), row=PredictNoise())),
        (Linear(), Converted(schedule=DiscreteVP(betas=linear_betas(37, 1e-3, 0.07)), row=PredictV())),
    ],
)
def test_every_method_of_a_configuration_comes_back(schedule, parameterization, tmp_path):
    original = denoiser(schedule, parameterization, sampler="euler")
    original.save_pretrained(tmp_path / "m")
    (tmp_path / "r.toml").write_text(to_toml(recipe(original, str(tmp_path / "m"))))
    config = load_config(tmp_path / "r.toml")
    same_outputs(build_denoiser(config, (1, 8, 8), 3), original)
    build_times(config, schedule)


def test_networks_that_were_told_of_augmentation_come_back(tmp_path):
    network = UNet(image_size=(8, 12), in_channels=2, width=16, multipliers=(1,), blocks=1, dropout=0.1, augment_dim=9)
    original = denoiser(backbone=awake(network), image_shape=(2, 8, 12), num_classes=0)
    original.save_pretrained(tmp_path)
    config = recipe(original, str(tmp_path))
    assert (config.backbone.dropout, config.data.size, config.data.channels) == (0.1, 0, 0)
    same_outputs(build_denoiser(config, (2, 8, 12), 0), original)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"schedule": Trig(), "parameterization": PredictVelocity()}, r"the schedule Trig\("),
        ({"schedule": VP(rho=3.0), "parameterization": PredictV()}, r"the schedule VP\(.*rho=3\.0"),
        ({"schedule": Cosine(offset=0.01), "parameterization": PredictV()}, r"the schedule Cosine\(offset=0\.01"),
        ({"schedule": DiscreteVP(betas=(0.1, 0.1, 0.3)), "parameterization": PredictV()}, "betas that is not linear"),
        ({"parameterization": ConsistencyKarras()}, r"the parameterization ConsistencyKarras\("),
        ({"schedule": Linear(), "parameterization": PredictVelocity(sigma_data=0.5)}, r"PredictVelocity\(sigma_data"),
        ({"backbone": torch.nn.Conv2d(1, 1, 3)}, "the network Conv2d"),
        ({"sampler": "mine"}, "the sampler mine"),
        ({"times": {"1": [80.0, 0.0]}}, "time grids of the model's own"),
    ],
)
def test_what_a_configuration_cannot_express_is_refused(parts, what):
    with pytest.raises(ValueError, match=rf"a configuration cannot express .*{what}"):
        recipe(denoiser(**parts), "m")


@pytest.mark.parametrize(("init", "name"), [("a/b c", "b-c-tuned"), ("x/-._y", "_y-tuned"), ("/", "model-tuned")])
def test_every_folder_gives_a_name_of_a_run(init, name, tmp_path):
    (tmp_path / "r.toml").write_text(to_toml(recipe(denoiser(), init)))
    assert load_config(tmp_path / "r.toml").name == name
