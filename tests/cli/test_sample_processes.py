"""Sampling shared by processes, and interrupted: the files must not tell."""

import os
import signal
from pathlib import Path

import pytest
import torch
from launch import free_port, start, together
from small import make_config

import genflow.cli.sample as module
from genflow.build import build_denoiser, export
from genflow.cli.main import main
from genflow.processes import check_launch

ASKED = ["--num", "200", "--first-seed", "30", "--steps", "2", "--sampler", "ancestral"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    denoiser = build_denoiser(make_config(folder.parent), (1, 8, 8), 3)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, folder)
    return folder


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(lambda: main(["sample", str(model), *ASKED, "--out", str(out)]))
    process.join()
    assert process.exitcode == 0
    made = files(out)
    assert len(made) == 201
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def killing(action, rank: int, after: int):
    """The same, but the process of this rank is killed while it writes an image, ``after`` images on."""
    real = module.write_image
    count = 0

    def write(path, image):
        nonlocal count
        count += 1
        if count > after and int(os.environ.get("RANK", "0")) == rank:
            path.with_name(".partial-half").write_bytes(b"half an image")
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, image)

    def run():
        module.write_image = write
        return action()

    return run


# for each start of the command: how many processes, and which is killed after how many images
HISTORIES = [
    [(2, None)],
    [(3, None)],
    [(1, (0, 70)), (1, None)],
    [(1, (0, 0)), (1, (0, 40)), (1, (0, 100)), (2, None)],
    [(2, (1, 10)), (3, (2, 0)), (2, None)],
    [(3, (0, 20)), (1, None)],
]


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_files_are_equal_whatever_the_number_of_processes_and_interruptions(history, model, whole, tmp_path) -> None:
    out = tmp_path / "out"

    def sample() -> int:
        return main(["sample", str(model), *ASKED, "--out", str(out)])

    for processes, kill in history:
        if kill is None:
            assert together(sample, processes) == [0] * processes
            continue
        action = killing(sample, *kill)
        if processes == 1:
            assert together(action, 1) == [-signal.SIGKILL]
        else:
            killed_together(action, processes, kill[0])
    assert files(out) == whole


def killed_together(action, processes: int, rank: int) -> None:
    """When one is killed, a launcher ends the others."""
    port = free_port()
    team = [start(action, k, processes, port) for k in range(processes)]
    team[rank].join(60)
    assert team[rank].exitcode == -signal.SIGKILL
    for process in team:
        process.kill()
        process.join()


def test_a_lone_process_of_a_launch_is_refused(model, tmp_path, monkeypatch, capsys) -> None:
    """As srun starts them: processes that would all write the same files."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert main(["sample", str(model), "--out", str(tmp_path / "out")]) == 2
    assert "2 processes were launched but they do not know of each other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("launcher", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_every_launcher_is_believed(launcher, monkeypatch) -> None:
    check_launch(1)
    monkeypatch.setenv(launcher, "4")
    check_launch(4)
    check_launch(8)  # torchrun on each of four machines that srun started
    with pytest.raises(RuntimeError, match=r"4 processes were launched .* \(1 joined\)"):
        check_launch(1)


@pytest.mark.parametrize("command", ["compare", "import", "push", "demo", "demo-reflow"])
def test_what_one_process_does_is_refused_to_several(command, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "x"]) == 2
    said = capsys.readouterr().err
    assert f"genflow {command} is the work of one process, 2 were launched: start it without a launcher" in said


def test_images_of_nobody_knows_whom_are_not_adopted(model, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "000003.png").write_bytes(b"somebody's")
    assert main(["sample", str(model), "--num", "8", "--out", str(out)]) == 2
    assert "000003.png is there already, and no samples.json that says how it was made" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["000003.png"]
    assert main(["sample", str(model), "--num", "2", "--first-seed", "70", "--out", str(out)]) == 0


@pytest.mark.parametrize("text", ["{", "[]", "\\x00"])
def test_a_damaged_manifest_is_named(text, model, tmp_path, capsys) -> None:
    (tmp_path / "samples.json").write_text(text)
    assert main(["sample", str(model), "--num", "2", "--out", str(tmp_path)]) == 2
    assert "samples.json is damaged" in capsys.readouterr().err
