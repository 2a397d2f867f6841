"""Several processes at work on one thing: whether they know of each other."""

from __future__ import annotations

import os

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
    if count > joined:
        raise RuntimeError(
            f"{count} processes were launched but they do not know of each other ({joined} joined): launch them with"
            " torchrun or accelerate launch"
        )


def check_alone(what: str) -> None:
    """Refuse a launch of several processes for something that one does: they would all write the same files.

    Raises ``RuntimeError``.
    """
    if launched() > 1:
        raise RuntimeError(
            f"{what} is the work of one process, {launched()} were launched: start it without a launcher"
        )
