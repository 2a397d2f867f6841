"""Training and sampling speed on a CUDA GPU, in slices.

    python tests/benchmarks/gpu.py

One slice stops before ``--budget-seconds`` have passed; the same command goes on with the rows that are missing, until
it says that all are there. Rows are kept in ``--out``, one line of JSON each (delete a line to measure it anew), and
the tables are written beside it.

- Training: whole steps of the Trainer (batch to the device, noise, losses, gradients, masked fused Adam, averaged
  weights, log sums) on random images in memory, in bf16 autocast, with and without torch.compile.
- Share of peak: FLOPs of the forward and backward pass alone (2 per multiply-add, attention as matrix products, nothing
  else of the step) over what the device is sold with, dense bf16, and over a large bf16 matrix product measured here.
- Sampling: ``genflow.generate`` with Heun in bf16 autocast, with and without torch.compile; the seeded noise made on
  the host is included.
- Processes: the same step, the same batch per process, over several GPUs (NCCL) beside one.

Batches are the largest of 64 to 1024 that fit, tried for each row (processes take that of one alone). Times are medians
over repeats between CUDA events, after warm-up.
``--device cpu --tiny`` runs every line, in seconds with TORCH_COMPILE_DISABLE=1, and measures nothing of interest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gpu_measuring import Effort, Network, free, full, matmul, sample, tiny, train, work

from genflow.files import write_text
from genflow.sampling.generate import network_calls

OUT = Path(__file__).parent / "results" / "gpu.jsonl"
# dense bf16 TFLOP/s of the makers' data sheets, by the exact name that torch gives; others are left blank
PEAKS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 4090": 165,
}
NOT_RUN = "not run on a GPU yet"
GRACE = 10  # seconds of a row that are kept for ending its processes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the tables, and the seconds to allow for it."""

    kind: Literal["matmul", "train", "sample", "processes"]
    seconds: float
    network: Network | None = None
    compiled: bool = False
    steps: int = 0
    processes: int = 1

    @property
    def name(self) -> str:
        parts = [self.kind, self.network.name if self.network else "", "compiled" if self.compiled else ""]
        parts += [f"{self.steps} steps" if self.steps else "", f"x{self.processes}" if self.processes > 1 else ""]
        return ", ".join(filter(None, parts))


def rows(effort: Effort, processes: int) -> list[Row]:
    """All rows: those first that others look up, those last that wait for the compiler."""
    found = [Row(kind="matmul", seconds=20)]
    for compiled, training, sampling in ((False, 45, 30), (True, 150, 100)):
        found += [Row(kind="train", network=n, compiled=compiled, seconds=training) for n in effort.networks]
        found += [
            Row(kind="sample", network=network, compiled=compiled, steps=steps, seconds=sampling)
            for network in effort.networks
            for steps in (1, 2, 18)
        ]
    if processes > 1:
        found += [Row(kind="processes", network=n, processes=processes, seconds=150) for n in effort.networks]
    return found


def processes(row: Row, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Launch this file once a process, and return the rate of all together."""
    assert row.network is not None
    command = [sys.executable, __file__, "--worker", row.network.name, "--batch", str(batch)]
    command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    said = run_workers(command, row.processes, row.seconds - GRACE)
    return {"batch": batch, **json.loads(said.strip().splitlines()[-1])}


def run_workers(command: Sequence[str], count: int, seconds: float) -> str:
    """Run a command in ``count`` processes that know of each other, and return what the first one printed.

    Raises ``RuntimeError`` if one fails or all take longer than ``seconds``; none is left then, nor what they started.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    until = time.perf_counter() + seconds
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as complaints:
        try:
            for rank in range(count):
                place = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                out = subprocess.DEVNULL if rank else printed
                started.append(
                    subprocess.Popen(command, env=place, stdout=out, stderr=complaints, start_new_session=True)
                )
            while None in (codes := [process.poll() for process in started]) and not any(codes):
                if time.perf_counter() > until:
                    raise RuntimeError(f"the {count} processes had not ended after {seconds:g} s")
                time.sleep(0.05)
            if any(codes):  # the others would wait for it
                complaints.seek(0)
                said = [line for line in complaints.read().decode(errors="replace").splitlines() if "Error" in line]
                raise RuntimeError(said[0] if said else f"processes ended with codes {codes}")
        except BaseException:
            stop(started)
            raise
        printed.seek(0)
        return printed.read().decode()


def stop(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that lead sessions of their own: asked first, then, with all that they started, killed."""
    for process in started:
        process.terminate()
    until = time.perf_counter() + GRACE / 2
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, until - time.perf_counter()))
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(row: Row, records: dict[str, Any], effort: Effort, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one row, or why there are none."""
    device = torch.device(options.device)
    free()
    try:
        match row:
            case Row(kind="matmul"):
                return matmul(device, effort)
            case Row(kind="train", network=Network() as network):
                return train(network, row.compiled, effort, row.seconds)
            case Row(kind="sample", network=Network() as network):
                return sample(network, row.steps, row.compiled, device, effort, row.seconds)
            case _:
                alone = records.get(Row(kind="train", network=row.network, seconds=0).name, {})
                return processes(row, alone.get("batch", effort.batches[-1]), options)
    except RuntimeError as error:
        return {"failed": str(error).strip().splitlines()[0][:200]}


# The tables


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown of the rows that there are."""
    where = next(iter(records.values()), {"device": NOT_RUN, "torch": "-"})
    measured = records.get("matmul", {}).get("tflops")
    training, sampling, several = [], [], []
    for name, r in records.items():
        _, network, *rest = [*name.split(", "), ""]
        if "failed" in r:
            training.append(f"| {name} | | | | | | | failed: {r['failed']} | |")
        elif name.startswith("train"):
            tflops = r["images_per_second"] * r["flops_per_image"] / 1e12
            shares = [f"{tflops / peak:.1%}" if peak else "" for peak in (PEAKS.get(where["device"]), measured)]
            training.append(
                f"| {network} | {r['parameters']:,} | {'yes' if 'compiled' in rest else 'no'} | {r['batch']} |"
                f" {r['images_per_second']:,.0f} | {_gib(r)} | {tflops:.1f} | {shares[0]} | {shares[1]} |"
            )
        elif name.startswith("sample"):
            steps = int(next(part for part in rest if part.endswith(" steps")).split()[0])
            calls = network_calls("heun", steps)
            compiled = "yes" if "compiled" in rest else "no"
            sampling.append(
                f"| {network} | {compiled} | {steps} ({calls}) | {r['batch']} |"
                f" {r['images_per_second']:,.0f} | {_gib(r)} |"
            )
        elif name.startswith("processes"):
            count = int(rest[0].removeprefix("x"))
            one = records.get(f"train, {network}", {}).get("images_per_second")
            share = f"{r['images_per_second'] / one / count:.1%}" if one else ""
            several.append(f"| {network} | {count} | {r['batch']} | {r['images_per_second']:,.0f} | {share} |")
    product = f", a bf16 matrix product reaches {measured:.0f} TFLOP/s" if measured else ""
    lines = [
        "# Speed on a GPU",
        "",
        f"Device: {where['device']}{product}; torch {where['torch']}. bf16 autocast, one GPU unless said otherwise;"
        " `tests/benchmarks/gpu.py` says what is measured. Made by `python tests/benchmarks/gpu.py`, repeated until it"
        " says that all rows are there.",
        "",
        "| training | parameters | compiled | batch | images/s | peak memory, GiB | TFLOP/s | of device peak |"
        " of matrix product |",
        "|---|---|---|---|---|---|---|---|---|",
        *(training or [f"| {NOT_RUN} | | | | | | | | |"]),
    ]
    if sampling:
        lines += [
            "",
            "| sampling, Heun | compiled | steps (calls) | batch | images/s | peak memory, GiB |",
            "|---|---|---|---|---|---|",
        ]
        lines += sampling
    if several:
        lines += ["", "| processes | GPUs | batch on each | images/s | of linear |", "|---|---|---|---|---|", *several]
    return "\n".join(lines) + "\n"


def _gib(record: dict[str, Any]) -> str:
    return f"{record['peak_memory'] / 2**30:.1f}" if record["peak_memory"] else ""


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Return the finished rows by name."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    return {record.pop("name"): record for record in map(json.loads, lines)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="rows that are finished; the tables lie beside it")
    parser.add_argument("--budget-seconds", type=float, default=500, help="begin no row that may end after this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    parser.add_argument("--processes", type=int, default=min(2, torch.cuda.device_count()), help="1 leaves them out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA GPU here; --device cpu --tiny tries the script out", file=sys.stderr)
        return 2
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    effort = tiny() if options.tiny else full()
    if options.worker:
        work(next(n for n in effort.networks if n.name == options.worker), options.batch, effort)
        return 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    where = {"device": name, "torch": torch.__version__}
    records = read(options.out)
    strange = [r for r in records.values() if where.items() - r.items()]
    if strange:
        there = f"{strange[0]['device']} with torch {strange[0]['torch']}"
        print(f"gpu.py: {options.out} holds rows of {there}, this is {name}: give another --out", file=sys.stderr)
        return 2
    missing = [row for row in rows(effort, options.processes) if row.name not in records]
    for number, row in enumerate(missing):
        elapsed = time.perf_counter() - started
        if number > 0 and elapsed + row.seconds > options.budget_seconds:
            print(f"stopped after {elapsed:.0f} s with {len(missing) - number} rows to go: the same command again")
            return 0
        began = time.perf_counter()
        record = where | measure(row, records, effort, options) | {"seconds": time.perf_counter() - began}
        records[row.name] = record
        write_text(options.out, "".join(json.dumps({"name": k, **r}) + "\n" for k, r in records.items()))
        write_text(options.out.with_suffix(".md"), table(records))
        print(row.name, {k: v for k, v in record.items() if k not in where}, flush=True)
    print(f"all {len(records)} rows are there: {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    sys.exit(main())
