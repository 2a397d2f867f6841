"""The scripts people start, started as they would be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["--train.batch-size", "16", "--train.threads", "1", "--train.log-every", "5", "--train.preview-every", "10"]
SHORT += ["--train.checkpoint-every", "10", "--sample.steps", "2"]

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_run(folder: Path, steps: int) -> None:
    """What section 4 of the design says a run leaves."""
    assert (folder / "config.toml").read_text().startswith("# genflow ")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, steps + 1, 5))
    assert (folder / "previews" / f"step-{steps:08d}.png").is_file()
    assert (folder / "checkpoints" / f"step-{steps:08d}" / "state.safetensors").is_file()
    names = {str(p.relative_to(folder / "model")) for p in (folder / "model").rglob("*") if p.is_file()}
    assert {"model_index.json", "denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors"} <= names
    assert not list(folder.rglob(".partial-*"))


@pytest.mark.parametrize(("script", "recipe"), [("rectified_flow", "tiny-rf"), ("rectified_flow", "tiny-dit")])
def test_a_script_trains_a_recipe(script: str, recipe: str, tmp_path) -> None:
    said = run(tmp_path, sys.executable, str(ROOT / "train" / f"{script}.py"), recipe, "--train.steps", "20", *SHORT)
    assert f"runs/{recipe}/model" in said
    check_run(tmp_path / "runs" / recipe, 20)


def test_a_run_is_continued_longer_launched_and_sampled(tmp_path) -> None:
    script = str(ROOT / "train" / "diffusion.py")
    run(tmp_path, sys.executable, script, "tiny-edm", "--train.steps", "20", *SHORT)
    check_run(tmp_path / "runs" / "tiny-edm", 20)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    recipe = str(ROOT / "train" / "configs" / "tiny-edm.toml")
    said = run(tmp_path, *launch, script, recipe, "--train.steps", "30", *SHORT)
    assert "going on from step 20" in said
    check_run(tmp_path / "runs" / "tiny-edm", 30)
    generate = [sys.executable, str(ROOT / "sample" / "generate.py"), "runs/tiny-edm/model"]
    said = run(tmp_path, *generate, "--num", "5", "--out", "made")
    assert said.startswith("made: 5 images, 3 network calls each")
    names = sorted(p.name for p in (tmp_path / "made").iterdir())
    assert names == [*(f"{seed:06d}.png" for seed in range(5)), "samples.json"]


def test_two_processes_train_one_model_and_continue_it(tmp_path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--optim.decay", "constant", *SHORT]
    for steps in (10, 20):
        said = run(tmp_path, *command, "--backbone.width", "16", "--train.steps", str(steps))
        assert said.count("the model; try") == 1
        check_run(tmp_path / "runs" / "tiny-rf", steps)


@pytest.mark.parametrize("script", ["train/diffusion.py", "train/rectified_flow.py", "sample/generate.py"])
def test_a_script_refuses_in_one_line_and_explains_itself(script: str, tmp_path) -> None:
    command = [sys.executable, str(ROOT / script)]
    assert script in run(tmp_path, *command, "--help")
    done = subprocess.run(
        [*command, "nowhere", "--nonsense", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("genflow: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "train").glob("*.py")) + sorted((ROOT / "sample").glob("*.py")), ids=lambda p: p.stem
)
def test_scripts_stay_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 30
