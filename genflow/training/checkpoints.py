"""Checkpoints for resuming: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genflow.files import atomic_folder
from genflow.training.shards import load_whole, shard_like, whole


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What of a run is not a tensor: steps done, bad steps so far and in a row, the best distance, the loss scaler."""

    step: int = 0
    bad_total: int = 0
    bad_in_a_row: int = 0
    best: float | None = None
    scaler: dict[str, Any] | None = None


class Checkpoints:
    """The folder ``checkpoints/`` of a run: one folder per step, of which the newest few are kept.

    ``step-00001000/`` holds state.safetensors, every tensor as it is, named "objective.…", "ema.…" or "optimizer.…", so
    that a run continues bit by bit, and progress.json. No pickles.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that exist, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def save(
        self, progress: Progress, objective: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, *, write: bool
    ) -> None:
        """Write a checkpoint, then remove those beyond the newest ``keep``.

        All processes take part, since weights may be sharded over them; the one with ``write`` does the writing.
        """
        tensors = {f"objective.{k}": whole(v) for k, v in objective.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": whole(v) for k, v in state.items()}
        if not write:
            return
        with atomic_folder(self._path(progress.step)) as partial:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial / "state.safetensors")
            (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(step))

    def restore(self, objective: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Load the newest checkpoint into these modules, or return the start of a run if there is none.

        Raises ``ValueError`` if the checkpoint is of another model, or damaged.
        """
        if not self.steps():
            return Progress()
        path = self._path(self.steps()[-1])
        try:
            tensors = load_file(path / "state.safetensors")
            progress = Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is damaged ({said}): remove it to go on from the one before") from None
        try:
            load_whole(_part(tensors, "objective."), objective)
            load_whole(_part(tensors, "ema."), ema)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} is a checkpoint of another model; give the run another --name ({said})") from None
        _restore_optimizer(optimizer, _part(tensors, "optimizer."))
        return progress

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = shard_like(tensor, parameters[int(number)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entry in optimizer.state.items():  # files are contiguous; fused kernels want the parameter's layout
        for key, tensor in entry.items():
            if tensor.shape == parameter.shape:
                entry[key] = torch.empty_like(parameter).copy_(tensor)
