"""The GPU benchmark measures every row once, however often it is stopped."""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from genflow.build import build_backbone

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch) -> ModuleType:
    """The script as a module, with no GPU and nothing compiled."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    for module, name in ((torch.compiler, "reset"), (gc, "collect")):  # most of the time that tiny rows take
        monkeypatch.setattr(module, name, lambda: None)
    import gpu  # pyright: ignore[reportMissingImports]

    return gpu


@pytest.fixture
def measuring(gpu) -> ModuleType:
    """What it measures with."""
    return sys.modules["gpu_measuring"]


def names(out: Path) -> list[str]:
    return [json.loads(line)["name"] for line in out.read_text().splitlines()]


def test_without_a_gpu_it_says_so_in_one_line(gpu, tmp_path, capsys) -> None:
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert "there is no CUDA GPU here" in shown.err
    assert not out.exists()


def test_slices_add_up_to_every_row_once(gpu, tmp_path, capsys) -> None:
    out = tmp_path / "gpu.jsonl"
    command = ["--device", "cpu", "--tiny", "--processes", "1", "--out", str(out)]
    expected = [row.name for row in gpu.rows(gpu.tiny(), 1)]
    for count in (1, 2):
        assert gpu.main([*command, "--budget-seconds", "0"]) == 0  # every slice makes one row at least
        assert names(out) == expected[:count]
        assert f"{len(expected) - count} rows to go" in capsys.readouterr().out
    early = out.read_text()
    assert gpu.main(command) == 0
    assert "all 17 rows are there" in capsys.readouterr().out
    assert out.read_text().startswith(early)
    assert names(out) == expected
    assert gpu.main(command) == 0  # and nothing is measured again
    assert names(out) == expected
    shown = out.with_suffix(".md").read_text()
    assert [shown.count(f"\n| {network.name} |") for network in gpu.tiny().networks] == [8, 8]
    assert [
        shown.count(f"\n| {network.name} | {c} | 18 (35) |") for network in gpu.tiny().networks for c in ("no", "yes")
    ] == [1] * 4
    assert "failed" not in shown


def test_rows_of_another_device_are_not_mixed(gpu, tmp_path, capsys) -> None:
    out = tmp_path / "gpu.jsonl"
    out.write_text(
        json.dumps({"name": "matmul", "device": "NVIDIA H200", "torch": torch.__version__, "tflops": 1}) + "\n"
    )
    kept = out.read_bytes()
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(out)]) == 2
    assert "holds rows of NVIDIA H200" in capsys.readouterr().err
    assert out.read_bytes() == kept


def test_the_largest_batch_that_fits_is_taken(measuring) -> None:
    tried = []

    def attempt(batch: int) -> dict:
        tried.append(batch)
        if batch > 128:
            raise torch.OutOfMemoryError
        return {"images_per_second": 1.0}

    assert measuring.largest_batch((1024, 512, 256, 128, 64), attempt) == {"batch": 128, "images_per_second": 1.0}
    assert tried == [1024, 512, 256, 128]
    with pytest.raises(RuntimeError, match="not even a batch of 256"):
        measuring.largest_batch((512, 256), attempt)


def test_memory_that_lacks_in_the_compiler_is_memory_that_lacks(measuring) -> None:
    def attempt(batch: int) -> dict:
        if batch > 2:
            raise RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory.")
        raise RuntimeError("no compiler here")

    with pytest.raises(RuntimeError, match="no compiler here"):
        measuring.largest_batch((4, 2), attempt)


def test_no_batch_is_tried_that_would_overstay(measuring) -> None:
    tried = []

    def attempt(batch: int) -> dict:
        tried.append(batch)
        time.sleep(0.03)
        raise torch.OutOfMemoryError

    with pytest.raises(RuntimeError, match="no batch above 64 fits into memory, and there was no time"):
        measuring.largest_batch((128, 64, 32), attempt, 0.04)
    assert tried == [128]


def test_a_slice_ends_within_its_budget(gpu, monkeypatch) -> None:
    """Nine minutes is what a command may take where these are run."""
    assert max(row.seconds for row in gpu.rows(gpu.full(), 8)) <= 500
    given = []
    monkeypatch.setattr(gpu, "run_workers", lambda command, count, seconds: given.append(seconds) or '{"a": 1}')
    options = argparse.Namespace(device="cpu", tiny=True)
    for row in [row for row in gpu.rows(gpu.tiny(), 2) if row.kind == "processes"]:
        assert gpu.measure(row, {}, gpu.tiny(), options) == {"batch": 2, "a": 1}
        assert given.pop() + gpu.GRACE <= row.seconds


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_rows_compile_and_try_every_batch(compiled: bool, gpu, measuring, monkeypatch) -> None:
    """A compiled network may hold more in memory than one that is not, or less."""
    asked, tried = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(type(self).__name__))
    monkeypatch.setattr(measuring, "timed", lambda action, device, effort: tried.append(device) or 0.5)
    network = gpu.tiny().networks[0]
    eager = {f"train, {network.name}": {"batch": 2}}
    options = argparse.Namespace(device="cpu", tiny=True)
    for kind, steps in (("train", 0), ("sample", 1)):
        row = gpu.Row(kind=kind, network=network, compiled=compiled, steps=steps, seconds=100)
        assert gpu.measure(row, eager, gpu.tiny(), options)["batch"] == 4
        assert asked == ["UNet"] * compiled
        asked.clear()


HANGS = r"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1] + os.environ["RANK"], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\n")
time.sleep(600)
"""
FAILS = """
import os, time
if os.environ["RANK"] == "1":
    raise ValueError("no such device")
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Tell whether a process still does anything; nobody may have asked yet how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes there are")
def test_processes_that_hang_are_ended_with_all_that_they_started(gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.4)
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="the 2 processes had not ended after 1 s"):
        gpu.run_workers([sys.executable, "-S", "-c", HANGS, str(tmp_path / "pid")], 2, 1)
    assert time.perf_counter() - began < 5
    pids = [int(pid) for rank in range(2) for pid in (tmp_path / f"pid{rank}").read_text().split()]
    assert len(pids) == 4
    until = time.perf_counter() + 5
    while any(map(alive, pids)) and time.perf_counter() < until:
        time.sleep(0.01)
    assert not any(map(alive, pids))


def test_one_process_that_fails_ends_the_others(gpu) -> None:
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="ValueError: no such device"):
        gpu.run_workers([sys.executable, "-S", "-c", FAILS], 2, 60)
    assert time.perf_counter() - began < 5


def test_a_row_that_fails_is_noted_and_the_others_go_on(gpu, tmp_path, monkeypatch, capsys) -> None:
    def broken(*arguments: object) -> dict:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(gpu, "train", broken)
    monkeypatch.setattr(gpu, "sample", lambda *given: {"batch": 1, "images_per_second": 1.0, "peak_memory": None})
    out = tmp_path / "gpu.jsonl"
    assert gpu.main(["--device", "cpu", "--tiny", "--processes", "1", "--out", str(out)]) == 0
    assert len(names(out)) == 17
    shown = out.with_suffix(".md").read_text()
    assert shown.count("failed: no compiler here |") == 4
    assert all(
        line.count("|") == 10 for line in shown.splitlines() if "failed" in line or line.startswith("| training")
    )


def test_flops_are_those_of_the_matrix_products(gpu, measuring) -> None:
    """Counted by hand: three passes of every product, two of the first, which has no gradient to its input."""
    network = gpu.tiny().networks[1]
    width, tokens, patch, channels = 16, 4, 4, 4
    patches = tokens * patch * patch * channels * width  # multiply-adds
    block = tokens * width * width * (4 + 8) + width * 6 * width
    attention = 2 * tokens * tokens * width
    head = width * 2 * width
    counted = measuring.flops_per_image(network)
    least = 2 * (2 * patches + 3 * (block + attention + head + patches))
    assert least <= counted <= 1.3 * least  # the embedding of time and labels comes on top


@pytest.mark.parametrize(("name", "million"), [("DDPM++ UNet 32x32x3", 55.7), ("DiT-B/2 32x32x4", 130)])
def test_the_networks_have_the_published_sizes(gpu, name: str, million: float) -> None:
    network = next(n for n in gpu.full().networks if n.name == name)
    with torch.device("meta"):
        backbone = build_backbone(network.backbone, network.shape, network.classes)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(million, rel=0.01)


def test_the_committed_table_is_that_of_the_committed_rows(gpu) -> None:
    assert gpu.OUT.with_suffix(".md").read_text() == gpu.table(gpu.read(gpu.OUT))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billion"), [("DiT-B/2 32x32x4", 23.01), ("DiT-B/4 32x32x4", 5.56)])
def test_the_networks_have_the_published_costs(gpu, measuring, name: str, billion: float) -> None:
    """Multiply-adds of one forward pass, as the paper of DiT gives them (arXiv 2212.09748; figures unconfirmed)."""
    network = next(n for n in gpu.full().networks if n.name == name)
    assert measuring.flops_per_image(network, 1) / 6 / 1e9 == pytest.approx(billion, rel=0.01)


@pytest.mark.slow
def test_killed_after_its_first_row_it_goes_on_with_the_second(gpu, tmp_path) -> None:
    """Over two processes as well, as users start it."""
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(out)]
    command += ["--processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    while process.poll() is None and not out.is_file():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    first = out.read_text()
    assert 1 <= len(names(out)) < 19
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith(first)
    assert names(out) == [row.name for row in gpu.rows(gpu.tiny(), 2)]
    assert "failed" not in out.read_text()
