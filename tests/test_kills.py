"""kill -9 at any moment of training, sampling, pairing and caching: what is resumed ends as if nothing had happened."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import free_port, start, together
from PIL import Image
from small import image_data, make_config, make_trainer
from teachers import make_teacher

import genflow.cli.sample
import genflow.pipeline  # noqa: F401 (here, so that the processes below are killed at work and not at imports)
from genflow.build import build_denoiser, build_loader, export, preview
from genflow.cli.main import main
from genflow.data.images import load_images
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser

KILLS = 10  # of each kind of work; half at random times, half at random writes
EVENTS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "ftruncate")  # of os, where files change hands

pytestmark = pytest.mark.slow


def watched(work: Callable[[], object], note: Callable[[], None]) -> Callable[[], object]:
    """The same work in a process that calls ``note`` before each thing it does to files and after it."""

    def run() -> object:
        for name in EVENTS:
            setattr(os, name, spied(getattr(os, name)))
        return work()

    def spied(real):
        def spy(*args, **kwargs):
            note()
            result = real(*args, **kwargs)
            note()
            return result

        return spy

    return run


def count_events(work: Callable[[], object]) -> tuple[int, float]:
    """Do the work without interruption, and return how often it touched files and how long it took."""
    counter = multiprocessing.Value("i", 0)

    def note() -> None:
        with counter.get_lock():
            counter.value += 1

    began = time.perf_counter()
    process = start(watched(work, note))
    process.join()
    assert process.exitcode == 0
    return counter.value, time.perf_counter() - began


def kill_often(
    work: Callable[[], object], check: Callable[[], None], folder: Path, seconds: float, events: int, seed: int
) -> None:
    """Do the work into ``folder``, killed ``KILLS`` times at random moments and events, each time begun again.

    Whenever it comes to its end, which it must at the last, its results are checked; then it begins anew.
    """
    rng = np.random.default_rng(seed)
    killed = 0
    while killed < KILLS:
        if killed % 2:
            process = start(work)
            process.join(rng.uniform(0, seconds))
            process.kill()
        else:
            remaining = int(rng.integers(1, events + 1))

            def note() -> None:
                nonlocal remaining
                remaining -= 1
                if remaining == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            process = start(watched(work, note))
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode != 0
        if process.exitcode == 0:
            check()
            shutil.rmtree(folder)
    process = start(work)
    process.join()
    assert process.exitcode == 0
    check()


def content(folder: Path) -> dict[str, object]:
    """Every file with its bytes; of the log, what does not depend on the clock."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found["log"] = [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_a_run_killed_ten_times(tmp_path) -> None:
    """Whose steps, checkpoints, previews, distances, best model and log must be those of a run left alone."""

    def train(name: str) -> Callable[[], object]:
        def work() -> None:
            config = make_config(
                tmp_path / name, steps=12, checkpoint_every=2, preview_every=3, evaluate_every=3, log_every=1, keep=2
            )
            trainer = make_trainer(config, preview=preview, export=export, evaluate=distance)
            trainer.fit()

        return work

    def check() -> None:
        whole, cut = (content(tmp_path / name / "small") for name in ("whole", "cut"))
        whole["config.toml"] = whole["config.toml"].replace(b"whole", b"cut")
        assert cut.keys() == whole.keys()
        assert [name for name in whole if whole[name] != cut[name]] == []
        assert "best/denoiser/diffusion_pytorch_model.safetensors" in whole

    events, seconds = count_events(train("whole"))
    kill_often(train("cut"), check, tmp_path / "cut", seconds, events, seed=0)


def distance(denoiser: Denoiser) -> float:
    """A figure that rises and falls in training."""
    return math.sin(1e3 * sum(float(p.sum()) for p in denoiser.parameters()))


def test_sampling_killed_ten_times(tmp_path) -> None:
    denoiser = build_denoiser(make_config(tmp_path), (1, 8, 8), 3)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, tmp_path / "model")

    def sample(name: str) -> Callable[[], object]:
        asked = ["sample", str(tmp_path / "model"), "--num", "200", "--steps", "4", "--sampler", "ancestral"]
        return lambda: main([*asked, "--out", str(tmp_path / name)])

    def check() -> None:
        assert content(tmp_path / "cut") == content(tmp_path / "whole")

    events, seconds = count_events(sample("whole"))
    kill_often(sample("cut"), check, tmp_path / "cut", seconds, events, seed=1)


def test_making_pairs_killed_ten_times(tmp_path) -> None:
    """Of seeds that begin and end within shards; nothing is lost, nothing is there twice."""
    make_teacher(tmp_path / "model")
    seeds = range(1000, 3300)

    def make(name: str) -> Callable[[], object]:
        asked = ["pairs", str(tmp_path / "model"), "--num", "2300", "--first-seed", "1000", "--steps", "2"]
        return lambda: main([*asked, "--out", str(tmp_path / name)])

    def check() -> None:
        assert content(tmp_path / "cut") == content(tmp_path / "whole")
        assert load_pairs(tmp_path / "cut").seeds.tolist() == list(seeds)

    events, seconds = count_events(make("whole"))
    kill_often(make("cut"), check, tmp_path / "cut", seconds, events, seed=4)


def test_caching_killed_ten_times(tmp_path) -> None:
    rng = np.random.default_rng(2)
    for k in range(400):
        path = tmp_path / "photos" / "abc"[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)

    def load(name: str) -> Callable[[], object]:
        def work() -> None:
            data = load_images(tmp_path / "photos", cache=tmp_path / name)
            np.savez(tmp_path / f"{name}.npz", images=data.images, labels=data.labels)

        return work

    def check() -> None:
        with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "cut.npz") as cut:
            assert np.array_equal(whole["images"], cut["images"])
            assert np.array_equal(whole["labels"], cut["labels"])
        assert not [p for p in (tmp_path / "cut").rglob("*") if "partial" in p.name]

    events, seconds = count_events(load("whole"))
    kill_often(load("cut"), check, tmp_path / "cut", seconds, events, seed=2)


def test_a_run_of_two_processes_of_which_one_is_killed(tmp_path) -> None:
    """Four times, at random moments; a launcher then ends the other."""

    def train(name: str) -> Callable[[], object]:
        def work() -> None:
            config = make_config(tmp_path / name, steps=40, checkpoint_every=2, log_every=1)
            trainer = make_trainer(config, export=export)
            trainer.loader = build_loader(config, image_data(), trainer.accelerator)
            trainer.fit()

        return work

    began = time.perf_counter()
    assert together(train("whole"), 2) == [0, 0]
    seconds = time.perf_counter() - began
    rng = np.random.default_rng(3)
    for victim in (0, 1, 0, 1):
        port = free_port()
        team = [start(train("cut"), rank, 2, port) for rank in range(2)]
        team[victim].join(rng.uniform(0.3, 0.9) * seconds)
        for process in (team[victim], team[1 - victim]):
            process.kill()
            process.join()
    assert together(train("cut"), 2) == [0, 0]
    whole, cut = (content(tmp_path / name / "small") for name in ("whole", "cut"))
    whole["config.toml"] = whole["config.toml"].replace(b"whole", b"cut")
    assert cut.keys() == whole.keys()
    assert [name for name in whole if whole[name] != cut[name]] == []
