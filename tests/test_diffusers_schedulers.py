"""Saved models run under diffusers' own schedulers, and give genflow's images.

The time embedding of each network sees what the matching scheduler counts in: 1000 sigma for rectified flow, the step k
of DDPM's table, ln(sigma) / 4 for EDM. So one loop serves all: ``x = scheduler.step(backbone(x, t, y), t, x)``, with
``scheduler.scale_model_input(x, t)`` for the network of EDM.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from small import DIT, UNET, make_config
from torch import Tensor

from genflow.build import build_denoiser, export
from genflow.config import (
    DiscreteVPConfig,
    KarrasConfig,
    LinearConfig,
    PredictNoiseConfig,
    PredictVConfig,
    PredictVelocityConfig,
    VEConfig,
)
from genflow.denoiser import Denoiser
from genflow.parameterizations import Karras
from genflow.pipeline import GenflowPipeline
from genflow.sampling.generate import generate
from genflow.sampling.noise import SeededNoise

pytestmark = pytest.mark.reference
SEEDS = range(3)
CLASSES = 3
SHAPE = (1, 8, 8)
CLOSE = {"rtol": 0, "atol": 1e-4}
BETAS = (1e-4, 0.004)  # alpha falls to 0.36, so that even a random network's images stay of order 1
DDPM_BETAS = (1e-4, 0.02)
METHODS = {
    "flow": (LinearConfig(), PredictVelocityConfig()),
    "edm": (VEConfig(), KarrasConfig()),
    "noise": (DiscreteVPConfig(beta_end=BETAS[1]), PredictNoiseConfig()),
    "v": (DiscreteVPConfig(beta_end=BETAS[1]), PredictVConfig()),
    "ddpm": (DiscreteVPConfig(), PredictNoiseConfig()),
}


@pytest.fixture(scope="module", params=["UNet", "DiT"])
def models(request, tmp_path_factory) -> dict[str, Denoiser]:
    """A random network per method, as it comes back from its saved folder."""
    made = {}
    for name, (schedule, parameterization) in METHODS.items():
        folder = tmp_path_factory.mktemp(name)
        config = make_config(folder, UNET if request.param == "UNet" else DIT)
        config = replace(config, schedule=schedule, parameterization=parameterization)
        denoiser = build_denoiser(config, SHAPE, CLASSES)
        torch.manual_seed(2)
        for p in denoiser.parameters():
            p.data += 0.05 * torch.randn_like(p)
        export(denoiser, folder / "model")
        made[name] = load(folder / "model")
    return made


def load(folder: Path) -> Denoiser:
    return GenflowPipeline.from_pretrained(folder).denoiser.eval()


@pytest.fixture(params=[None, [2, 0, 1]], ids=["no labels", "labels"])
def labels(request) -> list[int] | None:
    return request.param


def start(denoiser: Denoiser) -> Tensor:
    """The state that seeds begin from: sigma(t_max) times their noise."""
    t_max = torch.tensor(denoiser.schedule.t_max, dtype=torch.float64)
    return denoiser.schedule.sigma(t_max).float() * SeededNoise(SEEDS, SHAPE, torch.device("cpu"))(0)


@torch.no_grad()
def sample(denoiser: Denoiser, scheduler, labels: list[int] | None, **options) -> Tensor:
    """diffusers' usual loop around the bare network; ``options`` of a step are functions of its number."""
    x, y = start(denoiser), None if labels is None else torch.tensor(labels)
    for k, t in enumerate(scheduler.timesteps):
        x_in = scheduler.scale_model_input(x, t) if isinstance(denoiser.parameterization, Karras) else x
        raw = denoiser.backbone(x_in, t.float().expand(len(x)), y)
        x = scheduler.step(raw, t, x, **{name: value(k) for name, value in options.items()}).prev_sample
    return x


def ours(denoiser: Denoiser, sampler, labels: list[int] | None, *, steps: int) -> Tensor:
    return generate(
        denoiser, SEEDS, labels=labels, sampler=sampler, steps=steps, x=start(denoiser), output="float", batch_size=8
    )


def compare(theirs: Tensor, images: Tensor) -> None:
    """Equal to 1e-4, and worth comparing: of order 1, and not all alike."""
    assert 0.05 < images.std() < 5
    assert (images[0] - images[1]).abs().mean() > 0.01
    torch.testing.assert_close(theirs, images, **CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_rectified_flow_under_flow_match_euler(steps: int, models, labels) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])  # its own grid ends at 0.001, twice
    compare(sample(models["flow"], scheduler, labels), ours(models["flow"], "euler", labels, steps=steps))


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_edm_under_edm_euler(steps: int, models, labels) -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(steps)
    compare(sample(models["edm"], scheduler, labels), ours(models["edm"], "euler", labels, steps=steps))


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 30])
def test_edm_under_dpm_solver(steps: int, models, labels) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=0.5)
    scheduler.set_timesteps(steps)
    compare(sample(models["edm"], scheduler, labels), ours(models["edm"], "dpmpp_2m", labels, steps=steps))


def ddim(betas: tuple[float, float], prediction: Literal["epsilon", "v_prediction"] = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=betas[0],
        beta_end=betas[1],
        prediction_type=prediction,
        timestep_spacing="trailing",  # the default never visits the last entry, pure noise
        clip_sample=False,
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize(("method", "prediction"), [("noise", "epsilon"), ("v", "v_prediction")])
def test_variance_preserving_models_under_ddim(
    steps: int, method: str, prediction: Literal["epsilon", "v_prediction"], models, labels
) -> None:
    scheduler = ddim(BETAS, prediction)
    scheduler.set_timesteps(steps)
    compare(sample(models[method], scheduler, labels), ours(models[method], "euler", labels, steps=steps))


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_ddpm_betas_under_ddim(steps: int, models, labels) -> None:
    """At DDPM's last step a clean image is read at 157 times its size, and a random network's images are as large."""
    scheduler = ddim(DDPM_BETAS)
    scheduler.set_timesteps(steps)
    images = ours(models["ddpm"], "euler", labels, steps=steps)
    scale = images.abs().max()
    assert scale > 10
    compare(sample(models["ddpm"], scheduler, labels) / scale, images / scale)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_ancestral_sampling_under_ddim_with_eta_1(steps: int, models, labels) -> None:
    scheduler = ddim(BETAS)
    scheduler.set_timesteps(steps)
    noise = SeededNoise(SEEDS, SHAPE, torch.device("cpu"))
    theirs = sample(
        models["noise"], scheduler, labels, eta=lambda k: float(k < steps - 1), variance_noise=lambda k: noise(k + 1)
    )
    compare(theirs, ours(models["noise"], "ancestral", labels, steps=steps))


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 20])
def test_ancestral_sampling_under_ddpm(steps: int, models, labels, monkeypatch) -> None:
    noise = SeededNoise(SEEDS, SHAPE, torch.device("cpu"))
    draws = iter(range(1, steps + 1))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: noise(next(draws)))
    scheduler = DDPMScheduler(beta_start=BETAS[0], beta_end=BETAS[1], clip_sample=False)
    table = models["noise"].schedule.times(steps)[:-1] * 1000 - 1
    scheduler.set_timesteps(timesteps=table.round().int().tolist())  # any number of steps, since it looks up the next
    compare(sample(models["noise"], scheduler, labels), ours(models["noise"], "ancestral", labels, steps=steps))


@pytest.mark.parametrize("steps", [3, 7, 30])
def test_ddim_leaves_its_own_grid_where_steps_do_not_divide_the_table(steps: int) -> None:
    """Why only divisors of 1000 agree: a step lands at t - 1000 // steps, and the next one starts elsewhere."""
    scheduler = ddim(BETAS)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.numpy()
    assert not np.array_equal(visited[:-1] - 1000 // steps, visited[1:])
    scheduler.set_timesteps(20)
    visited = scheduler.timesteps.numpy()
    assert np.array_equal(visited[:-1] - 1000 // 20, visited[1:])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_bare_network_gives_what_the_denoiser_gives(method: str, models, labels) -> None:
    """So that ``Denoiser.forward``, which scales the input itself and knows the clock, can be used as well."""
    denoiser, x = models[method], SeededNoise(SEEDS, SHAPE, torch.device("cpu"))(0)
    y = None if labels is None else torch.tensor(labels)
    for t in torch.linspace(0.1, 0.9, 3, dtype=torch.float64):
        row = denoiser.parameterization.coefficients(denoiser.schedule, t)
        with torch.no_grad():
            raw = denoiser.backbone(row.c_in.float() * x, row.c_noise.float().expand(len(x)), y)
            torch.testing.assert_close(denoiser(x, t, y), raw, **CLOSE)
