"""The scripts people start, started as they would be."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["--train.batch-size", "16", "--train.threads", "1", "--train.log-every", "5", "--train.preview-every", "10"]
SHORT += ["--train.checkpoint-every", "10", "--sample.steps", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_run(folder: Path, steps: int) -> None:
    """What section 4 of the design says a run leaves."""
    assert (folder / "config.toml").read_text().startswith("# genflow ")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, steps + 1, 5))
    assert (folder / "previews" / f"step-{steps:08d}.png").is_file()
    assert (folder / "checkpoints" / f"step-{steps:08d}" / "state.safetensors").is_file()
    names = {str(p.relative_to(folder / "model")) for p in (folder / "model").rglob("*") if p.is_file()}
    assert {"model_index.json", "denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors"} <= names
    assert not list(folder.rglob(".partial-*"))


@pytest.mark.parametrize(
    ("script", "recipe"), [("rectified_flow", "tiny-rf"), ("rectified_flow", "tiny-dit"), ("consistency", "tiny-ict")]
)
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


def test_two_processes_train_one_model_continue_it_and_sample_it(tmp_path) -> None:
    launch = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--optim.decay", "constant", *SHORT]
    for steps in (10, 20):
        said = run(tmp_path, *command, "--backbone.width", "16", "--train.steps", str(steps))
        assert said.count("the model; try") == 1
        check_run(tmp_path / "runs" / "tiny-rf", steps)
    generate = [str(ROOT / "sample" / "generate.py"), "runs/tiny-rf/model", "--num", "100", "--steps", "1"]
    # torchrun takes --num for its own unless told where its options end
    assert run(tmp_path, *launch, "--", *generate, "--out", "two").count("two: 100 images, 1 network calls each") == 1
    run(tmp_path, sys.executable, *generate, "--out", "one")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == 101


def test_two_processes_make_pairs_and_a_student_is_trained_on_them(tmp_path) -> None:
    train = str(ROOT / "train" / "diffusion.py")
    run(tmp_path, sys.executable, train, "tiny-edm", "--backbone.width", "16", "--train.steps", "10", *SHORT)
    make = [str(ROOT / "sample" / "pairs.py"), "runs/tiny-edm/model", "--num", "1200", "--steps", "2"]
    launch = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "--"]
    assert run(tmp_path, *launch, *make, "--out", "two").count("two: 1200 pairs, 3 network calls each") == 1
    run(tmp_path, sys.executable, *make, "--out", "one")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == 3
    student = [train, "tiny-edm", "--name", "student", "--data.path", "two", "--init", "runs/tiny-edm/model"]
    student += ["--backbone.width", "16", "--train.steps", "10", *SHORT]
    run(tmp_path, sys.executable, *student)
    check_run(tmp_path / "runs" / "student", 10)


def test_a_run_told_to_stop_saves_exits_143_and_goes_on(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--backbone.width", "16"]
    command += ["--optim.decay", "constant", *SHORT, "--train.checkpoint-every", "100000"]
    process = subprocess.Popen(
        [*command, "--train.steps", "100000"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "runs" / "tiny-rf" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    step = int(said.split("stopped at step ")[1].split()[0])
    assert step >= 5
    assert f"going on from step {step}" in run(tmp_path, *command, "--train.steps", str(step + 5))


def test_a_single_process_of_accelerate_saves_when_the_launcher_is_told_to_stop(tmp_path) -> None:
    """The launcher passes nothing on: the process must hear of its end."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    command = [*launch, str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--backbone.width", "16", *SHORT]
    command += ["--train.checkpoint-every", "100000", "--train.steps", "100000"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "runs" / "tiny-rf"
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.wait(60)
    deadline = time.monotonic() + 30
    while not list((folder / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1


def test_a_launch_of_several_that_accelerate_makes_one_is_refused(tmp_path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launch, str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--train.steps", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "accelerate launch starts one process, whatever it is asked for" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_two_machines_train_one_model_and_stop_when_one_of_them_is_told_to(tmp_path) -> None:
    """Two launchers that meet at an address; one of the machines is taken away, and both save at the same step."""
    command = [str(ROOT / "train" / "rectified_flow.py"), "tiny-rf", "--train.steps", "100000", "--train.threads", "1"]
    command += ["--train.preview-every", "0", "--train.checkpoint-every", "5", "--backbone.width", "16"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        meeting = ["--master_addr", "127.0.0.1", "--master_port", str(listener.getsockname()[1])]
    machines = [
        subprocess.Popen(
            [*TORCHRUN, "--nnodes", "2", "--node_rank", str(rank), *meeting, *command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    folder = tmp_path / "runs" / "tiny-rf"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-00000005").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    machines[1].send_signal(signal.SIGTERM)
    said = [machine.communicate(timeout=120) for machine in machines]
    assert "stopped at step" in said[0][0], said
    assert all(machine.returncode != 0 for machine in machines)
    step = int(said[0][0].split("stopped at step ")[1].split()[0])
    assert (folder / "checkpoints" / f"step-{step:08d}").is_dir()
    assert not list(folder.rglob(".partial-*"))


@pytest.mark.parametrize(
    "script",
    ["train/diffusion.py", "train/rectified_flow.py", "train/consistency.py", "train/kind.py", "sample/generate.py"],
)
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
