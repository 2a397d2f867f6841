"""Several processes at work on one thing: whether they know of each other."""

from __future__ import annotations

import ctypes
import os
import sys

# what torchrun and accelerate, MPI's launchers and srun tell each process of their number
_LAUNCHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def launched() -> int:
    """Return how many processes a launcher says that it started; 1 without one."""
    return max(int(os.environ.get(name) or 1) for name in _LAUNCHERS)


def check_launch(joined: int) -> None:
    """Refuse a launch that has fallen apart into processes that each take themselves for the only one.

    ``joined`` is how many know of each other. Raises ``RuntimeError`` saying how to launch instead.
    """
    count = launched()
    if joined == 1 and _reduced_by_accelerate():
        raise RuntimeError(
            "accelerate launch starts one process, whatever it is asked for, on a machine without GPUs: launch several"
            " with torchrun --nproc_per_node N"
        )
    if count > joined:
        raise RuntimeError(
            f"{count} processes were launched but they do not know of each other ({joined} joined): launch them with"
            " torchrun or accelerate launch"
        )


def _reduced_by_accelerate() -> bool:
    """Tell whether accelerate launch was asked for several processes and started one.

    It then leaves an address to meet at, and nobody to meet.
    """
    import torch  # here, since the command line looks at launches before it needs torch

    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    return alone and "MASTER_ADDR" in os.environ and not torch.accelerator.is_available()


def end_with_launcher(number: int) -> None:
    """Have this process sent a signal when accelerate launch ends, which passes on no signal to a single process."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)


def check_alone(what: str) -> None:
    """Refuse a launch of several processes for something that one does: they would all write the same files.

    Raises ``RuntimeError``.
    """
    if launched() > 1:
        raise RuntimeError(
            f"{what} is the work of one process, {launched()} were launched: start it without a launcher"
        )
