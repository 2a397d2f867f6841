"""What benchmarks that train many models share: records kept as runs end, processes side by side, fair judges."""

from __future__ import annotations

import contextlib
import io
import json
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from genflow.data.decoding import Decoding
from genflow.data.images import load_images
from genflow.evaluation.embedded import Embedded
from genflow.evaluation.measurement import Wanted, gather
from genflow.evaluation.sources import FoundImages
from genflow.files import write_text

RESULTS = Path(__file__).parent / "results"
CHOSEN_BY = 2**32  # first seed of the samples that trials are judged by

Record = dict[str, Any]


def protocol(name: str, size: int) -> Embedded:
    """Return the protocol of reported figures."""
    return Embedded.load(name, size=size)  # pyright: ignore[reportArgumentType]


def judge(name: str, size: int) -> Embedded:
    """Return what trials are judged by: the training images, so that no choice has seen the held-out ones."""
    embedded = protocol(name, size)
    train = load_images(name, "train", decoding=Decoding(size=size or None))
    reference = gather(FoundImages(train), embedded.network, Wanted(), None)
    return replace(embedded, held_out=train, reference=reference)


class Records:
    """A file of one line of JSON per finished job; a job is known by the items of its key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[Record]:
        """Return all that is finished."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def find(self, key: Record) -> Record | None:
        """Return the record of a job."""
        return next((r for r in self.all() if key.items() <= r.items()), None)

    def add(self, record: Record) -> None:
        """Keep what has ended."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_failures(self, keys: Iterable[Record]) -> None:
        """Drop what failed of these jobs."""
        keys, every = list(keys), self.all()
        kept = [r for r in every if "failed" not in r or not any(key.items() <= r.items() for key in keys)]
        if len(kept) < len(every):
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))


def quietly(action: Callable[..., Record], *given: Any) -> Record:
    """Do a job in a process of its own, with one thread and nothing said."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return action(*given)


def counted(action: Callable[..., Record], *given: Any) -> Record:
    """Do a job in a process of its own, and add all CPU time that this process took."""
    return quietly(action, *given) | {"process_cpu_seconds": time.process_time()}


def side_by_side(
    records: Records, jobs: Iterable[tuple[Record, bool]], action: Callable[..., Record], given: Any, processes: int
) -> None:
    """Do jobs, so many at a time, and keep each record at once; ``action(given, key)`` returns what to add to its key.

    A job comes with whether it is to be done even though there is a record, as when its model has gone since. One that
    raises is recorded as ``failed``, with what it said, counts as done, and is tried again by the next command. If a
    process is killed nothing is recorded of it and of those that wait.
    """
    left = [key for key, again in jobs if again or "failed" in (records.find(key) or {"failed": ""})]
    records.forget_failures(left)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1)
    try:
        running = {pool.submit(counted, action, given, key): key for key in left}
        for finished in as_completed(running):
            key, error = running[finished], finished.exception()
            if isinstance(error, BrokenProcessPool):
                raise SystemExit("a process was killed, as for lack of memory: run this again to go on") from error
            if error is not None:  # one run that diverges must not cost the others
                traceback.print_exception(error)
            failed = {"failed": " ".join(str(error).split())[:300] or type(error).__name__}
            record = key | (failed if error is not None else finished.result())
            if records.find(key) is None:
                records.add(record)
                print({k: v for k, v in record.items() if k != "curve"}, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
