"""What a run says of itself: sums kept on the device, one line of JSON every so often."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.files import make_folder, naming, write_text

DECILES = 10


class Meter:
    """Sums of losses on the device, by decile of each image's time within the law of times; read once per log line.

    Reading is the only moment at which the host waits for the device, and, by ``reduce``, which adds a tensor up over
    all processes, for the others.
    """

    def __init__(self, device: torch.device, reduce: Callable[[Tensor], Any] = lambda tensor: tensor) -> None:
        self._reduce = reduce
        self._sums = torch.zeros(3, DECILES, device=device)  # finite losses; how many; how many were not finite
        self._norm = torch.zeros(2, device=device)  # gradient norms; steps that were taken
        self._bad = torch.zeros(3, device=device)  # bad steps since the start; in a row now; longest row since reading

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to write the line that this one would have; all processes call this."""
        return {"sums": self._reduce(self._sums), "norm": self._norm, "bad": self._bad}

    def load(self, state: dict[str, Tensor], *, main: bool) -> None:
        """Take up an earlier part of the run; the sums of all processes go to the main one."""
        self._sums.copy_(state["sums"] * main)
        self._norm.copy_(state["norm"])
        self._bad.copy_(state["bad"])

    def add_losses(self, losses: Tensor, u: Tensor) -> None:
        """Take in one loss per image (B,) and the images' ranks in the law of times (B,)."""
        decile = (u * DECILES).long().clamp(0, DECILES - 1)
        finite = losses.isfinite()
        rows = torch.stack([losses.where(finite, 0), finite.to(losses.dtype), (~finite).to(losses.dtype)])
        self._sums.index_add_(1, decile, rows)

    def add_step(self, norm: Tensor, bad: Tensor) -> None:
        """Take in a step's gradient norm and whether it was left out, 0-dimensional both."""
        self._norm += torch.stack([norm.where(~bad, 0), (~bad).to(norm.dtype)])
        total, row, longest = self._bad
        row = (row + 1) * bad
        self._bad = torch.stack([total + bad, row, torch.maximum(longest, row)])

    def read(self) -> dict[str, Any]:
        """Return the means since the last reading and the counts of bad steps, and begin anew."""
        joined = self._reduce(self._sums)  # norms and bad steps are the same in every process
        values = torch.cat([joined.flatten(), self._norm, self._bad]).tolist()
        sums, counts, infinite = (values[k * DECILES : (k + 1) * DECILES] for k in range(3))
        norm, steps, total, row, longest = values[3 * DECILES :]
        self._sums.zero_()
        self._norm.zero_()
        self._bad[2] = 0
        return {
            "loss": _ratio(sum(sums), sum(counts)),
            "loss_by_decile": [_ratio(s, n) for s, n in zip(sums, counts, strict=True)],
            "grad_norm": _ratio(norm, steps),
            "bad_losses": int(sum(infinite)),
            "bad_total": int(total),
            "bad_in_a_row": int(row),
            "bad_longest": int(longest),
        }


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


def _sayable(value: Any) -> Any:
    if isinstance(value, list):
        return [_sayable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLog:
    """log.jsonl: one line of JSON per record, each with its step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int, *, owed: bool = False) -> None:
        """Drop what a resumed run writes again, and half a line, if one is there.

        That is what was written after ``step``, and, if looks at the model of ``step`` are owed, what they found: all
        lines of that step but the one with its loss.
        """
        if not self.path.exists():
            return
        kept: list[str] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                again = record["step"] > step or (owed and record["step"] == step and "loss" not in record)
                if not again:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # half a line, or somebody's
                continue
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; figures that are not finite, for which JSON has no word, become null."""
        make_folder(self.path.parent)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _sayable(value) for key, value in record.items()}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that goes with it
