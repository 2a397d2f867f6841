"""Every tiny recipe learns: one short seed, a loose bound (full runs: tests/benchmarks/results/tiny.md)."""

import pytest

from genflow.build import build_trainer
from genflow.config_files import find_recipe, load_config, override
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "steps", "ema"),
    [("tiny-edm", 150, 2000), ("tiny-ddpm", 150, 2000), ("tiny-rf", 150, 2000), ("tiny-dit", 500, 5000)],
)
def test_a_short_run_is_far_from_noise(recipe: str, steps: int, ema: int, tmp_path) -> None:
    """Below 12 times the floor in a minute; drawing the mean image of each class scores 21 times, noise 75."""
    changes = ["--out", str(tmp_path), "--train.steps", str(steps), "--optim.warmup", "20"]
    changes += ["--optim.ema-halflife", str(ema), "--train.preview-every", "0"]
    config = override(load_config(find_recipe(recipe)), changes, prog="test", about="")
    denoiser = Denoiser.from_pretrained(build_trainer(config).fit())
    result = Embedded.load("digits").measure(denoiser, steps=20, ranges=1)
    assert result.over_floor < 12
    assert result.figures["accuracy"].value > 0.35  # chance is 0.1
    assert result.figures["memorising"].value > 0.8
