"""``genflow pairs``: what a teacher makes of each seed; shared, interrupted or grown, which the files must not tell."""

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import free_port, start, together
from teachers import make_teacher

import genflow.data.pair_files as module
from genflow.cli.main import main
from genflow.cli.seed_pairs import choose_solver
from genflow.data.pairs import PairData, load_pairs
from genflow.denoiser import Denoiser, weights_hash
from genflow.pixels import quantize
from genflow.schedules import Linear

ASKED = ["--num", "2300", "--first-seed", "900", "--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    make_teacher(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(lambda: main(["pairs", str(model), *ASKED, "--out", str(out)]))
    process.join()
    assert process.exitcode == 0
    made = files(out)
    assert sorted(made) == ["manifest.json", *(f"pairs-0000000{k}.safetensors" for k in range(4))]
    return made


def killing(action, rank: int, after: int):
    """The same, but the process of this rank is killed while it writes a shard, ``after`` shards on."""
    real = module.save_file
    count = 0

    def save(tensors, path, metadata):
        nonlocal count
        count += 1
        real(tensors, path, metadata)
        if count > after and int(os.environ.get("RANK", "0")) == rank:
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    def run():
        module.save_file = save
        return action()

    return run


# for each start of the command: how many processes, and which is killed after how many shards
HISTORIES = [
    [(2, None)],
    [(3, None)],
    [(1, (0, 1)), (1, None)],
    [(2, (1, 0)), (3, (0, 0)), (2, None)],
]


@pytest.mark.parametrize("history", HISTORIES, ids=str)
def test_files_are_equal_whatever_the_number_of_processes_and_interruptions(history, model, whole, tmp_path) -> None:
    out = tmp_path / "out"

    def make() -> int:
        return main(["pairs", str(model), *ASKED, "--out", str(out)])

    for processes, kill in history:
        if kill is None:
            assert together(make, processes) == [0] * processes
            continue
        action = killing(make, *kill)
        port = free_port()
        team = [start(action, k, processes, port) for k in range(processes)]
        team[kill[0]].join(60)
        assert team[kill[0]].exitcode == -signal.SIGKILL
        for process in team:  # when one is killed, a launcher ends the others
            process.kill()
            process.join()
        for seeds in [set(load_pairs(out).seeds.tolist())] if list(out.glob("pairs-*")) else []:
            assert seeds < set(range(900, 3200))  # usable, and not all of it
    assert files(out) == whole


def test_a_set_that_grew_is_the_one_made_at_once(model, whole, tmp_path) -> None:
    command = ["pairs", str(model), *ASKED[2:], "--out", str(tmp_path / "out")]
    assert main([*command, "--num", "130"]) == 0
    first = files(tmp_path / "out")
    assert main([*command, "--num", "1000"]) == 0
    assert main([*command, "--num", "2300"]) == 0
    assert files(tmp_path / "out") == whole
    assert main([*command, "--num", "5"]) == 0
    assert files(tmp_path / "out") == whole
    assert first.keys() < whole.keys()


def test_the_same_command_again_makes_nothing(model, tmp_path, capsys) -> None:
    command = ["pairs", str(model), "--num", "70", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()}
    assert main(command) == 0
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()} == before
    assert "out: 70 pairs, 1 network calls each; train on them by --data.path" in capsys.readouterr().out


def heun_of_edm(denoiser: Denoiser, noise: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Algorithm 1 of arXiv 2206.00364, written anew: 18 steps, rho 7, from 80 noise."""
    levels = [(80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(18)] + [0.0]
    x = 80 * noise.double()
    for t, s in itertools.pairwise(levels):
        slope = (x - denoiser.denoise(x.float(), torch.tensor(t), y)) / t
        ahead = x + (s - t) * slope
        if s > 0:
            slope = (slope + (ahead - denoiser.denoise(ahead.float(), torch.tensor(s), y)) / s) / 2
        x = x + (s - t) * slope
    return x


@pytest.mark.parametrize("batch", [1, 7])
def test_the_teacher_makes_of_the_noise_the_image_of_the_pair(batch: int, model, tmp_path) -> None:
    assert main(["pairs", str(model), "--num", "100", "--first-seed", "33", "--out", str(tmp_path / "out")]) == 0
    data, teacher = load_pairs(tmp_path / "out"), Denoiser.from_pretrained(model).eval()
    assert data.manifest.made["network_calls"] == 35
    assert data.labels is not None
    for first in range(0, 21, batch):
        index = np.arange(first, first + batch)
        with torch.no_grad():
            made = heun_of_edm(teacher, torch.from_numpy(data.noise(index)), torch.from_numpy(data.labels[index]))
        far = quantize(made).int() - torch.from_numpy(data.images[index]).int()
        assert far.abs().max() <= 1
    assert len(np.unique(data.images[np.arange(100)], axis=0)) == 100


def made(model: Path, out: Path, *given: str) -> PairData:
    assert main(["pairs", str(model), "--num", "300", "--steps", "1", "--out", str(out), *given]) == 0
    return load_pairs(out)


def test_labels_follow_the_rule(model, tmp_path) -> None:
    """Without classes, with any, with given ones: the images are of the labels that are written down."""
    anyone = made(model, tmp_path / "random")
    assert anyone.labels is not None
    assert set(anyone.labels.tolist()) == {0, 1, 2}
    turn = made(model, tmp_path / "turn", "--labels", "2", "3")
    assert turn.labels is not None
    assert turn.labels.tolist() == [2, 3] * 150
    none = made(model, tmp_path / "none", "--labels", "none")
    assert (none.labels, none.num_classes) == (None, 0)
    everything = np.arange(300)
    both = anyone.labels == turn.labels
    assert 20 < both.sum() < 150
    same = (anyone.images[everything] == turn.images[everything]).reshape(300, -1).all(1)
    assert np.array_equal(same, both)
    odd = everything % 2 == 1  # 3 is no class
    same = (none.images[everything] == turn.images[everything]).reshape(300, -1).all(1)
    assert np.array_equal(same, odd)


def test_the_manifest_says_how_pairs_were_made(model, tmp_path) -> None:
    made(model, tmp_path / "out", "--guidance", "1.5")
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert said["made"]["teacher"]["weights"] == weights_hash(Denoiser.from_pretrained(model))
    assert said["made"]["teacher"]["schedule"]["class"] == "VE"
    assert (said["made"]["sampler"], said["made"]["guidance"], said["made"]["times"]) == ("heun", 1.5, [80.0, 0.0])
    assert (said["count"], said["first_seed"], said["image_shape"], said["num_classes"]) == (300, 0, [1, 8, 8], 3)
    assert (said["generator"], len(said["shards"])) == ("philox4x64-10/box-muller/1", 1)


def test_an_edm_teacher_is_solved_as_the_paper_does(model) -> None:
    """35 calls, or more if the model wants more; another sampler of the model's is none of an ODE's."""
    teacher = Denoiser.from_pretrained(model)
    assert choose_solver(teacher, "default", 0) == ("heun", 18)
    assert choose_solver(teacher, "default", 5) == ("heun", 5)
    assert choose_solver(teacher, "euler", 0) == ("euler", 4)
    teacher.steps = 40
    assert choose_solver(teacher, "default", 0) == ("heun", 40)
    teacher.sampler = "ancestral"
    assert choose_solver(teacher, "default", 0) == ("heun", 18)
    teacher.schedule = Linear()
    with pytest.raises(ValueError, match=r"sampler ancestral does not follow the flow .* --sampler euler or"):
        choose_solver(teacher, "default", 0)
    teacher.sampler = "euler"
    assert choose_solver(teacher, "default", 0) == ("euler", 40)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--steps", "-1"], "steps"),
        (["--num", "0"], "--num must be at least 1, got 0"),
        (["--labels", "0", "4"], "label 4 is out of range: this model has the classes 0 to 2 (3 means none)"),
        (["--labels", "none", "--guidance", "2"], "--guidance 2 needs classes"),
        (["--first-seed", "-1"], "seeds must be in [0, 2^64), got -1"),
        (["--sampler", "ancestral"], "sampler"),
        (["--labels", "some"], "labels"),
        (["--out", "digits"], "digits names an embedded set"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(given, said, model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pairs", str(model), "--out", "out", *given]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--steps", "3"], "steps (2 there, 3 here)"),
        (["--sampler", "euler"], "sampler (heun there, euler here)"),
        (["--labels", "none"], "labels (random there, none here) and num classes (3 there, 0 here)"),
    ],
)
def test_a_folder_is_continued_only_as_it_was_begun(given, named, model, tmp_path, capsys) -> None:
    command = ["pairs", str(model), "--num", "10", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = files(tmp_path / "out")
    assert main([*command, *given, "--num", "20"]) == 2
    assert f"holds pairs of another {named}: give another --out" in capsys.readouterr().err
    assert files(tmp_path / "out") == before


def test_pairs_of_another_teacher_are_not_continued(model, tmp_path, capsys) -> None:
    """Another one in its weights alone, too."""
    command = ["--num", "10", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(["pairs", str(model), *command]) == 0
    other = make_teacher(tmp_path / "other", seed=2)
    assert main(["pairs", str(tmp_path / "other"), *command]) == 2
    theirs, ours = (weights_hash(each)[:12] for each in (Denoiser.from_pretrained(model), other))
    said = f"holds pairs of another teacher weights ({theirs} there, {ours} here): give another --out"
    assert said in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_named(model, tmp_path, capsys) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(["pairs", str(model), "--num", "2", "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'} is a file, not a folder" in capsys.readouterr().err
    assert main(["sample", str(model), "--num", "2", "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'} is a file, not a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_teachers_of_latents_are_refused(tmp_path, capsys) -> None:
    make_teacher(tmp_path / "latents", shape=(4, 8, 8), classes=0)
    assert main(["pairs", str(tmp_path / "latents"), "--out", str(tmp_path / "out")]) == 2
    assert "draws latents of 4 channels, and pairs hold pictures" in capsys.readouterr().err


def test_a_damaged_shard_is_named_and_once_removed_made_again(model, tmp_path, capsys) -> None:
    command = ["pairs", str(model), "--num", "1100", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = files(tmp_path / "out")
    path = tmp_path / "out" / "pairs-00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "pairs-00000001.safetensors is damaged" in said
    assert "remove it, and give the command that made it again" in said
    path.unlink()
    assert main(command) == 0
    assert files(tmp_path / "out") == before


def test_a_teacher_without_classes_makes_pairs_without_labels(tmp_path, capsys) -> None:
    make_teacher(tmp_path / "model", classes=0)
    data = made(tmp_path / "model", tmp_path / "out")
    assert (data.labels, data.num_classes) == (None, 0)
    assert data.manifest.made["labels"] == "none"
    assert main(["pairs", str(tmp_path / "model"), "--out", str(tmp_path / "no"), "--guidance", "2"]) == 2
    assert "--guidance 2 needs classes: this teacher has none, leave it out" in capsys.readouterr().err


def test_guidance_that_is_no_number_leaves_no_manifest_behind(model, tmp_path, capsys) -> None:
    command = ["pairs", str(model), "--num", "5", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--guidance", "nan"]) == 2
    assert "--guidance must be finite, got nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
