"""The order of events of a training run."""

from __future__ import annotations

import contextlib
import math
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from genflow import __version__
from genflow.config import Config, TrainConfig
from genflow.config_files import to_flat, to_toml
from genflow.data.loader import Loaded
from genflow.denoiser import Denoiser
from genflow.files import make_folder, remove_partials, write_text
from genflow.objectives.base import Batch, Objective
from genflow.pictures import write_image
from genflow.pixels import to_unit
from genflow.processes import check_launch
from genflow.training.agreement import agree
from genflow.training.checkpoints import Checkpoints, Progress
from genflow.training.ema import EMA
from genflow.training.interruption import Interruption, Terminated
from genflow.training.logging import JsonLog, Meter
from genflow.training.optim import learning_rate, make_optimizer, mask_step, prepare_step
from genflow.training.shards import whole
from genflow.training.tuning import tune

Loader = Callable[[int], Loaded]
Augment = Callable[[Tensor], tuple[Tensor, Tensor]]


class Trainer:
    """Trains an objective on batches, into a run folder; the same call again continues where it stopped.

    ``loader(number)`` gives the number-th batch of this process; a step takes ``parts_of(config.train, processes)`` of
    them. Noise that comes with images is theirs, others meet fresh noise. Everything random in a step comes from
    (seed, step, rank), so that k steps, a restart and n - k steps are bit by bit n steps on a CPU. The host reads
    nothing back from the device between two lines of the log.

    ``images`` is a fingerprint of what the loader draws from, which must be the same when the run goes on.
    ``augment(x)`` gives images (B, C, H, W) in [-1, 1] and the labels that tell what was done to them (B, K);
    ``preview(denoiser)`` gives a picture (C, H, W) uint8, ``probe(denoiser)`` what the log is to say beside it,
    ``evaluate(denoiser)`` a distance, ``export(denoiser, folder)`` writes the folder to share; the last four are handed
    the averaged weights.

    Raises ``ValueError`` if the folder holds a run of another model or on other images; ``RuntimeError`` after
    ``stop_after_bad`` steps in a row without a finite gradient, with the run saved, if another command is at this run,
    and if the processes do not agree; ``Terminated`` after SIGTERM, with the run saved.
    """

    def __init__(
        self,
        objective: Objective,
        loader: Loader,
        config: Config,
        *,
        accelerator: Accelerator | None = None,
        images: str = "",
        augment: Augment | None = None,
        preview: Callable[[Denoiser], Tensor] | None = None,
        probe: Callable[[Denoiser], dict[str, float]] | None = None,
        evaluate: Callable[[Denoiser], float] | None = None,
        export: Callable[[Denoiser, Path], None] | None = None,
    ) -> None:
        self.config = config
        self.folder = config.folder
        self.accelerator = accelerator or make_accelerator(config)
        self.objective = objective.to(self.accelerator.device)
        tune(self.objective, config, self.accelerator.device)
        self.ema = EMA(objective.denoiser, halflife=config.optim.ema_halflife, rampup=config.optim.ema_rampup)
        self.optimizer = make_optimizer(objective, config.optim)
        self.loader = loader
        self.parts = parts_of(config.train, self.accelerator.num_processes)
        self.images = images
        self.augment = augment
        self.preview = preview
        self.probe = probe
        self.evaluate = evaluate
        self.export = export or _export_denoiser
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=config.train.keep)
        self.log = JsonLog(self.folder / "log.jsonl")
        self.meter = Meter(self.accelerator.device, self.accelerator.reduce)
        self._wrapped, self._stepper = self.accelerator.prepare(objective, self.optimizer)
        self.ema.follow(objective.denoiser)  # which FSDP has given other weights
        self._saved = 0  # the step of the newest checkpoint

    def fit(self) -> Path:
        """Train to the end and return the folder of the model."""
        with self._lock(), Interruption(self.accelerator.num_processes) as interruption:
            progress = self._begin()
            self._settle(progress.step)
            self._run(progress, interruption)
        if self.accelerator.is_main_process and not (self.folder / "model").is_dir():  # somebody has removed it
            self.export(self.ema.denoiser, self.folder / "model")
        self.accelerator.end_training()
        return self.folder / "model"

    def _lock(self) -> contextlib.AbstractContextManager[object]:
        """Hold the run against other commands until this process ends, in whatever way; the main process does."""
        path = self.folder.with_name(f".{self.folder.name}.lock")
        lock = FileLock(path)
        if self.accelerator.is_main_process:
            make_folder(path.parent)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
        held: Any = self.accelerator.reduce(torch.tensor(int(lock.is_locked), device=self.accelerator.device))
        if not held:
            raise RuntimeError(
                f"another process is training {self.folder}: wait for it, or give this run another --name (if there is"
                f" none, as after a kill on a file system without locks, remove {path})"
            )
        stack = contextlib.ExitStack()
        stack.callback(lock.release)
        return stack

    def _run(self, progress: Progress, interruption: Interruption) -> None:
        best = progress.best
        total, batch_size = self.config.train.steps, self.config.train.batch_size
        bar = tqdm(
            total=total * batch_size,
            initial=progress.step * batch_size,
            desc=self.config.name,
            unit="img",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            disable=not self.accelerator.is_main_process,
        )
        with bar:
            if progress.owed:
                best = self._look(progress.step, best)
            started = time.perf_counter(), progress.step
            for step in range(progress.step, total):
                self._step(step)
                bar.update(batch_size)
                done = step + 1
                if self._due(done, self.config.train.log_every):
                    rate = (done - started[1]) * batch_size / (time.perf_counter() - started[0])
                    self._report(done, rate, bar, best)
                    started = time.perf_counter(), done
                stop = interruption.agreed() and done < total
                pause = time.perf_counter()  # pictures, distances and checkpoints are not training
                if stop:  # there may be little time: what is to be looked at here is looked at on resuming
                    self._save(done, best, owed=True)
                    self.accelerator.print(f"{self.folder}: stopped at step {done} and saved; the same command goes on")
                    raise Terminated
                best = self._look(done, best)
                if self._due(done, self.config.train.checkpoint_every):
                    self._save(done, best)
                started = started[0] + time.perf_counter() - pause, started[1]

    def _due(self, done: int, every: int) -> bool:
        return every > 0 and (done % every == 0 or done == self.config.train.steps)

    def _look(self, done: int, best: float | None) -> float | None:
        """Draw and measure what is due, and return the best distance so far."""
        draw = self._due(done, self.config.train.preview_every)
        judge = self._due(done, self.config.train.evaluate_every)
        if draw or judge:
            self._show(done, draw=draw)
        if judge:
            best = self._judge(done, best)
        return best

    def _begin(self) -> Progress:
        """Restore what there is, and write down what will be done."""
        if self.accelerator.is_main_process:
            remove_partials(self.folder)
            self.checkpoints.prune()
        self.accelerator.wait_for_everyone()
        agree("the configuration", to_flat(self.config), self.accelerator)
        progress, meter = self.checkpoints.restore(self.objective, self.ema.denoiser, self.optimizer)
        agree("the step to go on from", {"it": progress.step}, self.accelerator)
        if progress.step > self.config.train.steps:
            raise ValueError(f"{self.folder} is at step {progress.step}, beyond train.steps {self.config.train.steps}")
        if progress.step and progress.images != self.images:
            raise ValueError(
                f"the images are not those that {self.folder} began with: give them back (of pairs that are still being"
                " made the number it began with, as --data.pairs), or give this run another --name and --init"
                f" {self.folder / 'model'}"
            )
        self.ema.follow(self.objective.denoiser)
        self._saved = progress.step
        if progress.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        if meter:
            self.meter.load(meter, main=self.accelerator.is_main_process)
        if self.config.train.tracker:
            self.accelerator.init_trackers(self.config.name, config=to_flat(self.config))
        if self.accelerator.is_main_process:
            self.log.rewind(progress.step, owed=progress.owed)
            write_text(self.folder / "config.toml", _provenance() + to_toml(self.config))
        if progress.step:
            self.accelerator.print(f"{self.folder}: going on from step {progress.step}")
        return progress

    def _settle(self, step: int) -> None:
        """Do a pass that counts for nothing, where processes share a step.

        After its first pass torch lays out anew what the processes add up, and sums of three numbers and more round by
        that layout: without this the first step of a resumed run would differ in its last bits.
        """
        if self.accelerator.num_processes > 1 and step < self.config.train.steps:
            self.objective.train()
            self.accelerator.backward(self._wrapped(self._batch(step * self.parts), step).mean())
            self.optimizer.zero_grad(set_to_none=True)

    def _step(self, step: int) -> None:
        """One optimiser step: gradients of all parts, clipping, a masked update, the average."""
        train, optim = self.config.train, self.config.optim
        words = np.random.SeedSequence([self.config.seed, step, self.accelerator.process_index])
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.parts):
            last = part == self.parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._wrapped):
                batch = self._batch(step * self.parts + part)
                losses = self._wrapped(batch, step)
                self.accelerator.backward(losses.mean() / self.parts)
            self.meter.add_losses(losses.detach(), batch.u)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), optim.clip or float("inf"))
        assert norm is not None
        norm = whole(norm)
        bad = ~norm.isfinite()
        if self.accelerator.scaler is None:  # fp16's scaler masks by itself
            mask_step(self.optimizer, bad)
        prepare_step(self.optimizer, step, train.steps, optim)
        self._stepper.step()
        self.meter.add_step(norm, bad)
        self.objective.after_step(step)
        self.ema.update((step + 1) * train.batch_size, train.batch_size)

    def _batch(self, number: int) -> Batch:
        loaded = self.loader(number)
        y, index, noise = self._move(loaded.labels), self._move(loaded.indices), self._move(loaded.noise)
        x, told = to_unit(self._move(loaded.images)), None
        if self.augment is not None:
            x, told = self.augment(x)
        return Batch.draw(x, y, index, told, noise)

    @overload
    def _move(self, tensor: Tensor) -> Tensor: ...
    @overload
    def _move(self, tensor: None) -> None: ...
    def _move(self, tensor: Tensor | None) -> Tensor | None:
        """Bring a batch to the device without waiting for it, which takes pinned memory on a GPU."""
        device = self.accelerator.device
        if tensor is None:
            return None
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def _report(self, done: int, rate: float, bar: tqdm[Any], best: float | None) -> None:
        """Read the meter, write the log, and stop the run if it is beyond help."""
        values = self.meter.read()
        record = {"step": done, "images": done * self.config.train.batch_size, **values, "images_per_second": rate}
        record |= self.objective.pace(done - 1)
        record["lr"] = learning_rate(done - 1, self.config.train.steps, self.config.optim)
        if values["loss"] is not None:
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if self.accelerator.is_main_process:
            self.log.write(record)
        self.accelerator.log({k: v for k, v in record.items() if isinstance(v, (int, float))}, step=done)
        if values["bad_longest"] >= self.config.train.stop_after_bad:
            self._save(done, best)
            largest = max(p.abs().max().item() for p in self.objective.parameters() if p.numel())
            raise RuntimeError(
                f"the gradient was not finite for {values['bad_longest']} steps in a row, up to step {done}; none of"
                f" them was taken (since the last line of the log {values['bad_losses']} images had a loss that is not"
                f" finite; the largest weight is {largest:g}). The run is saved: start another --name with --init"
                f" {self.folder / 'model'} and a lower --optim.lr (now {self.config.optim.lr:g}), with --optim.clip, or"
                " with --train.mixed-precision no"
            )

    def _save(self, done: int, best: float | None, *, owed: bool = False) -> None:
        """Write the folder of the averaged model and a checkpoint, unless they have been."""
        if done == self._saved:
            return
        self.ema.gather()
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        progress = Progress(
            step=done,
            best=best,
            scaler=scaler,
            images=self.images,
            owed=owed,
        )
        main = self.accelerator.is_main_process
        try:
            if main:
                self.export(self.ema.denoiser, self.folder / "model")
            meter = self.meter.state()
            self.checkpoints.save(progress, self.objective, self.ema.denoiser, self.optimizer, meter, write=main)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"cannot save step {done} of {self.folder} ({' '.join(str(error).split())}); what was saved before is"
                " whole: make room, and give the same command again"
            ) from error
        self._saved = done
        self.accelerator.wait_for_everyone()

    def _show(self, done: int, *, draw: bool) -> None:
        """Write what the averaged model's probe finds, and a picture if one is due."""
        if (self.preview is None or not draw) and self.probe is None:
            return
        self.ema.gather()
        if not self.accelerator.is_main_process:
            return
        if self.preview is not None and draw:
            write_image(self.folder / "previews" / f"step-{done:08d}.png", self.preview(self.ema.denoiser))
        if self.probe is not None:
            found = self.probe(self.ema.denoiser)
            self.log.write({"step": done, **found})
            self.accelerator.log(found, step=done)

    def _judge(self, done: int, best: float | None) -> float | None:
        """Measure the distance, keep the best model there has been, and return its distance."""
        if self.evaluate is None:
            return best
        self.ema.gather()
        measured = torch.tensor(self.evaluate(self.ema.denoiser), dtype=torch.float32, device=self.accelerator.device)
        distance = float(broadcast(measured))  # pyright: ignore[reportArgumentType] # or processes might judge apart
        if self.accelerator.is_main_process:
            self.log.write({"step": done, "frechet_train": distance})
        self.accelerator.log({"frechet_train": distance}, step=done)
        if not distance < (math.inf if best is None else best):  # nor when it is not a number
            return best
        if self.accelerator.is_main_process:
            self.export(self.ema.denoiser, self.folder / "best")
        return distance


def make_accelerator(config: Config) -> Accelerator:
    """Return accelerate's view of devices and processes for this configuration.

    Raises ``ValueError`` for a precision that the device cannot train in, ``RuntimeError`` for processes that were
    launched but do not know of each other.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        cpu=not torch.accelerator.is_available(),  # or each of several processes would take itself for the only one
        log_with=config.train.tracker or None,
        project_dir=config.out,  # trackers make the folder of the run's name in it
    )
    if config.train.mixed_precision == "fp16" and accelerator.scaler is None:  # small gradients would become 0 unseen
        raise ValueError(
            f"train.mixed_precision fp16 needs loss scaling, which {accelerator.device.type} does not have:"
            " use bf16 or no"
        )
    check_launch(accelerator.num_processes)
    return accelerator


def parts_of(train: TrainConfig, processes: int) -> int:
    """Return how many batches of a process make one optimiser step: the fewest equal ones within ``microbatch``.

    Raises ``ValueError`` for a batch size that the processes cannot share equally.
    """
    share, rest = divmod(train.batch_size, processes)
    if rest or not share:
        near = max(1, round(train.batch_size / processes)) * processes
        raise ValueError(
            f"train.batch_size {train.batch_size} cannot be shared equally by {processes} processes: give a multiple,"
            f" such as {near}"
        )
    most = train.microbatch or share
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= most)


def _export_denoiser(denoiser: Denoiser, folder: Path) -> None:
    denoiser.save_pretrained(folder)


def _provenance() -> str:
    """Return comment lines that say what wrote a configuration."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate", "numpy"))
    return f"# genflow {__version__}, python {platform.python_version()}, {packages}\n"
