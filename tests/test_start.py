"""Starting from a saved model: what its weights mean is kept, or it is said that it is not."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from oracles import CountingNetwork
from small import make_config
from teachers import make_teacher

from genflow.build import build_denoiser
from genflow.build_start import load_named, misreading
from genflow.cli.main import main
from genflow.config import Config, ConvertedConfig, DataConfig, KarrasConfig, PredictVelocityConfig, RegressionConfig
from genflow.config_files import find_recipe, load_config, to_toml
from genflow.denoiser import Denoiser
from genflow.parameterizations import (
    Conditioning,
    ConsistencyKarras,
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig, linear_betas

MODELS: list[tuple[Schedule, Parameterization]] = [
    (VE(), Karras()),
    (VE(sigma_max=50.0), Karras(level_min=0.01)),
    (VE(), Karras(sigma_data=0.3)),
    (VE(), ConsistencyKarras()),
    (Linear(), Karras()),
    (Linear(), Karras(level_max=20.0)),
    (Linear(), Karras(level_min=1e-5, level_max=99999.0)),
    (Linear(), Karras(conditioning=Conditioning.TIME)),
    (Linear(), PredictVelocity()),
    (Linear(), PredictClean()),
    (Trig(), PredictVelocity(sigma_data=0.5)),
    (VP(), PredictNoise()),
    (VP(level_min=0.01), PredictNoise()),
    (VP(beta_d=10.0), PredictNoise()),
    (VP(), PredictV()),
    (VP(), Karras()),
    (DiscreteVP(), PredictNoise()),
    (DiscreteVP(betas=linear_betas(500)), PredictNoise()),
    (Cosine(), PredictNoise()),
    (Linear(), Converted(schedule=VP(), row=PredictNoise())),
    (Linear(), Converted(schedule=VP(), row=PredictV())),
    (VE(), Converted(schedule=DiscreteVP(), row=PredictNoise())),
]


class Waves(CountingNetwork):
    """An answer that depends on the input's scale, and on the time within the digits of an embedding."""

    def forward(self, x, c_noise, y=None, s=None):
        return torch.tanh(x) + torch.sin(3 * c_noise + 1).view(-1, 1, 1, 1)


def model(schedule: Schedule, row: Parameterization) -> Denoiser:
    return Denoiser(Waves(), schedule, row, image_shape=(1, 4, 4))


def clean(denoiser: Denoiser, y: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """What a model sees in states ``y`` of the linear path at ``tau``."""
    t = denoiser.schedule.time_at(tau / (1 - tau))
    size = denoiser.schedule.alpha(t) + denoiser.schedule.sigma(t)
    return denoiser.denoise((size.view(-1, 1, 1, 1) * y).float(), t)


@pytest.mark.parametrize(("one", "two"), list(itertools.product(MODELS, MODELS)), ids=lambda m: type(m[1]).__name__)
def test_it_is_silent_exactly_where_both_compute_the_same(one, two) -> None:
    first, second = model(*one), model(*two)
    tau = torch.linspace(0.12, 0.5, 12, dtype=torch.float64)
    y = torch.randn(12, 1, 4, 4)
    far = float((clean(first, y, tau) - clean(second, y, tau)).abs().max())
    said = misreading(first, second)
    assert (said == "") == (far < 0.01), (said, far)
    if said:
        assert far > 0.02
        assert "\n" not in said
        assert len(said) < 500


def test_it_says_what_the_weights_mean_what_for_they_are_taken_and_what_to_do() -> None:
    edm, ddpm = model(VE(), Karras()), model(DiscreteVP(), PredictNoise())
    flow = model(Linear(), PredictVelocity())
    assert misreading(edm, flow) == (
        "its weights mean Karras (sigma_data 0.5, conditioning level) on VE, and this run takes them for"
        " PredictVelocity on Linear: the network is told another time, it sees its input at another scale, its output"
        " is read otherwise, and training begins far from that model; to begin as its equal give parameterization"
        " Karras, with sigma_data 0.5 and conditioning level"
    )
    by_time = misreading(edm, model(Linear(), Karras(conditioning=Conditioning.TIME)))
    assert ": the network is told another time, and training begins far" in by_time
    said = misreading(ddpm, flow)
    assert "its weights mean PredictNoise on DiscreteVP" in said
    assert "on another schedule parameterization Converted with these two as schedule and row" in said
    converted = model(Linear(), Converted(schedule=VP(), row=PredictV()))
    assert "its weights mean Converted (PredictV on VP) on Linear" in misreading(converted, flow)
    assert misreading(flow, edm).endswith("give the schedule and parameterization that its config.json lists")
    steep = model(Linear(), Converted(schedule=VP(beta_d=10.0), row=PredictV()))
    assert "takes them for Converted (PredictV on VP) on Linear of other values" in misreading(converted, steep)


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("tiny-reflow", (VE(), Karras())),
        ("demo-reflow", (Linear(), PredictVelocity())),
        *((f"rf2pp-cifar10-{arm}", (VE(), Karras())) for arm in "bcdef"),
        ("rf2pp-cifar10-g", (Linear(), Karras(level_min=1e-5, level_max=99999.0))),
        ("rf2pp-imagenet64", (VE(), Karras())),
        *((f"{method}-{data}", (VE(), Karras())) for method in ("ect", "cd") for data in ("cifar10", "imagenet64")),
    ],
)
def test_recipes_begin_as_equals_of_what_they_start_from(name, teacher, monkeypatch) -> None:
    config = load_config(find_recipe(name))
    assert config.init
    monkeypatch.setattr("genflow.build.load_named", lambda path, option: None)  # which is not there
    monkeypatch.setattr("genflow.build.misreading", lambda source, denoiser: "")
    monkeypatch.setattr("genflow.build.is_consistency", lambda source: False)
    with torch.device("meta"):
        student = build_denoiser(config, (1, 8, 8), 0)
    assert misreading(model(*teacher), student) == ""


def warned(config: Config, capfd) -> list[str]:
    """The warnings of a training run on the command line, which goes to its end."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    path = Path(config.out) / f"{config.name}.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert main(["train", str(path)]) == 0
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("genflow: warning: ")]


def test_a_run_that_misreads_its_start_warns_in_one_line_and_goes_on(tmp_path, capfd) -> None:
    make_teacher(tmp_path / "edm", classes=10)
    config = replace(make_config(tmp_path, steps=2), init=str(tmp_path / "edm"), data=DataConfig(path="digits"))
    config = replace(config, parameterization=KarrasConfig(level_max=20.0))
    assert warned(config, capfd) == []
    by_time = replace(config, name="time", parameterization=KarrasConfig(conditioning="time"))
    (said,) = warned(by_time, capfd)
    assert said.startswith(f"genflow: warning: init {tmp_path / 'edm'}: its weights mean Karras")
    assert (by_time.folder / "model").is_dir()
    assert warned(replace(by_time, train=replace(by_time.train, steps=4)), capfd) == []  # it goes on, from its own
    objective = RegressionConfig(label_dropout=0.0)
    for row in (PredictVelocityConfig(), ConvertedConfig()):
        (said,) = warned(replace(config, name=row.type, parameterization=row, objective=objective), capfd)
        assert f"this run takes them for {row.type}" in said


def test_from_python_it_is_a_warning(tmp_path) -> None:
    make_teacher(tmp_path / "edm")
    with pytest.warns(UserWarning, match="its weights mean Karras"):
        build_denoiser(replace(make_config(tmp_path), init=str(tmp_path / "edm")), (1, 8, 8), 3)


def test_a_start_that_a_recipe_would_make_is_told_of(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"init runs/tiny-edm/model is not a folder.* genflow train tiny-edm leaves its"
    ):
        load_named("runs/tiny-edm/model", "init")
    with pytest.raises(ValueError, match=r"hf:OWNER/NAME for one on the hub$"):
        load_named("runs/mine/model", "init")
