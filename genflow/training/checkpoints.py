"""Checkpoints for resuming: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genflow.files import atomic_folder, remove_partials


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

    def save(self, progress: Progress, objective: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, then remove those beyond the newest ``keep``."""
        tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        with atomic_folder(self._path(progress.step)) as partial:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial / "state.safetensors")
            (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(step))

    def restore(self, objective: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Load the newest checkpoint into these modules, or return the start of a run if there is none.

        Raises ``ValueError`` if the checkpoint is of another model.
        """
        remove_partials(self.folder)
        if not self.steps():
            return Progress()
        path = self._path(self.steps()[-1])
        tensors = load_file(path / "state.safetensors")
        try:
            objective.load_state_dict(_part(tensors, "objective."))
            ema.load_state_dict(_part(tensors, "ema."))
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} is a checkpoint of another model; give the run another --name ({said})") from None
        _restore_optimizer(optimizer, _part(tensors, "optimizer."))
        return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entry in optimizer.state.items():  # files are contiguous; fused kernels want the parameter's layout
        for key, tensor in entry.items():
            if tensor.shape == parameter.shape:
                entry[key] = torch.empty_like(parameter).copy_(tensor)
