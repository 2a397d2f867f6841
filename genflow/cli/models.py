"""What subcommands that use a saved model share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

from genflow.config import Config
from genflow.config_files import load_config
from genflow.denoiser import Denoiser, saved_in
from genflow.processes import check_launch, launched


@dataclass(frozen=True)
class Team:
    """This process among those that share a command: number ``rank`` of ``count``, at work on ``device``."""

    rank: int
    count: int
    device: torch.device
    wait: Callable[[], None]
    """Returns once all have called it."""

    def share(self, work: list[int]) -> list[int]:
        """Return this process's part of the work that process 0 found to be done."""
        if self.count == 1:
            return work
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([work])[0][self.rank :: self.count]


def join_processes(device: str) -> Team:
    """Join the processes of a launch by torchrun or accelerate; without one, be alone on the device of this name.

    Raises ``RuntimeError`` for a launch whose processes do not know of each other, ``ValueError`` for a device that
    torch does not have here.
    """
    if launched() == 1:
        return Team(0, 1, choose_device(device), lambda: None)
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.accelerator.is_available()  # accelerate has to be told
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # one may have much to do, others nothing
    check_launch(state.num_processes)
    if device not in ("auto", "cpu"):
        raise ValueError(f"--device {device} names one device for {state.num_processes} processes: leave it out")
    return Team(state.process_index, state.num_processes, torch.device(state.device or "cpu"), state.wait_for_everyone)


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the accelerator, if there is one.

    Raises ``ValueError`` for a device that torch does not have here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {name!r} here: {str(error).splitlines()[0]}") from None


def load_model(path: str, device: torch.device) -> Denoiser:
    """Load a saved model, or the model of a run folder, onto a device."""
    denoiser = Denoiser.from_pretrained(saved_in(path))
    nn.Module.to(denoiser, device)  # diffusers' own says nothing of the type it returns
    return denoiser


def run_of(model: str) -> Config | None:
    """Return the configuration of the run that a model lies in, if it lies in one."""
    folder = Path(model)
    file = (folder.parent if folder.name in ("model", "best") else folder) / "config.toml"
    return load_config(file) if file.is_file() else None


def picture_shape(denoiser: Denoiser, otherwise: str) -> tuple[int, int, int]:
    """Return (C, H, W) of the pictures that a model draws.

    Raises ``ValueError`` for one of latents; ``otherwise`` says what they are not, and what to do.
    """
    channels, height, width = denoiser.image_shape
    if channels not in (1, 3):
        raise ValueError(f"this model draws latents of {channels} channels, {otherwise}")
    return channels, height, width
