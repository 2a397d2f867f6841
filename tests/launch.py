"""Several processes as a launcher would start them, and processes to be killed: forks of this one, which start fast."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import torch
from accelerate.state import AcceleratorState, GradientState

_FORK = multiprocessing.get_context("fork")


def start(work: Callable[[], object], rank: int = 0, count: int = 1, port: int = 0) -> BaseProcess:
    """Start a process that does ``work`` as rank ``rank`` of ``count``, over gloo if there are several."""

    def run() -> None:
        torch.set_num_threads(1)
        if count > 1:
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(count),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        code = 0
        try:
            result = work()
            code = result if isinstance(result, int) else 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)

    process = _FORK.Process(target=run)
    process.start()
    return process


def together(work: Callable[[], object], count: int) -> list[int | None]:
    """Do ``work`` in ``count`` processes that know of each other, and return their exit codes in order."""
    port = free_port()
    processes = [start(work, rank, count, port) for rank in range(count)]
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
