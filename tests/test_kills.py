"""kill -9 at any moment of training, sampling and caching: what is resumed ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import start
from PIL import Image
from small import make_config, make_trainer

import genflow.cli.sample
import genflow.pipeline  # noqa: F401 (here, so that the processes below are killed at work and not at imports)
from genflow.build import build_denoiser, export, preview
from genflow.cli.main import main
from genflow.data.images import load_images

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


def kill_often(work: Callable[[], object], events: int, seconds: float, rng: np.random.Generator) -> None:
    """Begin the work ``KILLS`` times and kill it each time, at a random moment or event; then let it end."""
    killed = 0
    for attempt in range(KILLS * 10):
        if killed == KILLS:
            break
        if attempt % 2:
            process = start(work)
            time.sleep(rng.uniform(0, seconds))
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
    process = start(work)
    process.join()
    assert process.exitcode == 0
    assert killed >= 3  # work that ended could not be killed again


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


@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_ten_times(seed, tmp_path) -> None:
    def train(name: str) -> Callable[[], object]:
        def work() -> None:
            config = make_config(
                tmp_path / name, steps=12, checkpoint_every=2, preview_every=3, evaluate_every=3, log_every=1, keep=2
            )
            scores = {3: 5.0, 6: 4.0, 9: 4.5, 12: 3.0}
            trainer = make_trainer(config, preview=preview, export=export)
            trainer.evaluate = lambda denoiser: scores[int(trainer.objective_step)]
            real = trainer._step

            def step(k: int) -> None:
                trainer.objective_step = k + 1
                real(k)

            trainer._step = step
            trainer.fit()

        return work

    events, seconds = count_events(train("whole"))
    rng = np.random.default_rng(seed)
    kill_often(train("cut"), events, seconds, rng)
    whole, cut = (content(tmp_path / name / "small") for name in ("whole", "cut"))
    whole["config.toml"] = whole["config.toml"].replace(b"whole", b"cut")
    assert cut.keys() == whole.keys()
    assert [name for name in whole if whole[name] != cut[name]] == []
    assert "best/denoiser/diffusion_pytorch_model.safetensors" in whole


def test_sampling_killed_ten_times(tmp_path) -> None:
    denoiser = build_denoiser(make_config(tmp_path), (1, 8, 8), 3)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, tmp_path / "model")

    def sample(name: str) -> Callable[[], object]:
        asked = ["sample", str(tmp_path / "model"), "--num", "300", "--steps", "4", "--sampler", "ancestral"]
        return lambda: main([*asked, "--out", str(tmp_path / name)])

    events, seconds = count_events(sample("whole"))
    kill_often(sample("cut"), events, seconds, np.random.default_rng(1))
    for left in (tmp_path / "cut").glob(".partial-*"):
        assert left.suffix == ""  # no tool takes it for an image, and a later command removes it
        os.utime(left, (0, 0))
    assert start_and_join(sample("cut")) == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_caching_killed_ten_times(tmp_path, monkeypatch) -> None:
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

    events, seconds = count_events(load("whole"))
    for _ in range(3):  # a cache that is whole is not built again, so it takes several to be killed ten times
        kill_often_building(load("cut"), tmp_path / "cut", events, seconds, rng)
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "cut.npz") as cut:
        assert np.array_equal(whole["images"], cut["images"])
        assert np.array_equal(whole["labels"], cut["labels"])
    assert not [p for p in (tmp_path / "cut").rglob("*") if "partial" in p.name or p.suffix == ".tmp"]


def kill_often_building(work, cache: Path, events: int, seconds: float, rng) -> None:
    """Empty the cache, then kill what fills it."""
    import shutil

    shutil.rmtree(cache, ignore_errors=True)
    kill_often(work, events, seconds, rng)


def start_and_join(work: Callable[[], object]) -> int | None:
    process = start(work)
    process.join()
    return process.exitcode
