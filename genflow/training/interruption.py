"""SIGTERM during training: what schedulers send before they take a machine away."""

from __future__ import annotations

import collections
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import distributed

LAG = 2  # steps by which the host may run ahead of the slowest process before it waits for news of it
LONG = 0.5  # seconds from which a step is long: launchers kill half a minute after SIGTERM, and waiting costs nothing


class Terminated(SystemExit):
    """A run that was told to stop by SIGTERM, and has been saved: exit code 143, as of any process so ended."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interruption:
    """Within its block SIGTERM, however often, asks the run to stop after the step at hand.

    Processes may hear of it at different steps, or not all of them, and must stop after the same step, since each
    step waits for all. So every step each sends the others whether it was told, over gloo, host to host, and reads
    what was sent ``LAG`` steps ago: all read the same sums, and neither host nor device waits for the other. Once
    all have read that steps are long for one of them, all read what was sent in the same step.
    """

    def __init__(self, processes: int) -> None:
        self.told = False
        self._lag = LAG
        self._last = time.monotonic()
        self._group: Any = distributed.new_group(backend="gloo") if processes > 1 else None
        self._sent: collections.deque[tuple[Any, torch.Tensor]] = collections.deque()
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if kind is None:  # else some of the others may be gone
            for work, _ in self._sent:
                work.wait()
        self._sent.clear()

    def agreed(self) -> bool:
        """Tell, once a step, whether to stop now; all processes get the same answer in the same step."""
        if self._group is None:
            return self.told
        now = time.monotonic()
        message = torch.tensor([self.told, now - self._last > LONG], dtype=torch.int32)
        self._last = now
        work = distributed.all_reduce(message, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._sent.append((work, message))
        stop = False
        while len(self._sent) > self._lag:
            work, message = self._sent.popleft()
            work.wait()
            told, long = message.tolist()
            stop = stop or bool(told)
            self._lag = 0 if long else LAG
        return stop

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = True
