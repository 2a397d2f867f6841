"""Checkpoints for resuming: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genflow.files import atomic_folder
from genflow.training.shards import load_whole, shard_like, whole


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What of a run is not a tensor.

    Steps done, the best distance, the loss scaler, the fingerprint of the images, and whether the picture and the
    distance that may be due at this step are still owed.
    """

    step: int = 0
    best: float | None = None
    scaler: dict[str, Any] | None = None
    images: str = ""
    owed: bool = False


_PROGRESS = TypeAdapter(Progress)


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
        found = [re.fullmatch(r"step-(\d{8,})", path.name) for path in self.folder.glob("step-*") if path.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def save(
        self,
        progress: Progress,
        objective: nn.Module,
        ema: nn.Module,
        optimizer: torch.optim.Optimizer,
        meter: dict[str, Tensor],
        *,
        write: bool,
    ) -> None:
        """Write a checkpoint, then ``prune``.

        All processes take part, since weights may be sharded over them; the one with ``write`` does the writing.
        """
        held = {f"objective.{k}": v for k, v in objective.state_dict().items()}
        held |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
        held |= {f"meter.{k}": v for k, v in meter.items()}
        for number, state in optimizer.state_dict()["state"].items():
            held |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        tensors: dict[str, Tensor] = {}
        for name, tensor in held.items():  # one at a time: whole, they may not fit beside each other
            gathered = whole(tensor)
            if write:
                tensors[name] = gathered.detach().cpu().contiguous()
        if not write:
            return
        with atomic_folder(self._path(progress.step)) as partial:
            save_file(tensors, partial / "state.safetensors")
            (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        self.prune()

    def prune(self) -> None:
        """Remove checkpoints beyond the newest ``keep``, or what a kill left of them."""
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(step))

    def restore(
        self, objective: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[Progress, dict[str, Tensor]]:
        """Load the newest checkpoint into these modules, and return what else it holds: progress and the meter.

        Without a checkpoint that is the start of a run, and nothing of a meter.
        Raises ``ValueError`` if the checkpoint is of another model, or damaged.
        """
        if not self.steps():
            return Progress(), {}
        path = self._path(self.steps()[-1])
        try:
            tensors = load_file(path / "state.safetensors")
            progress = _read_progress(path / "progress.json")
            _check_whole(progress, self.steps()[-1], tensors)
        except (OSError, ValueError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is damaged ({said}): remove it to go on from the one before") from None
        try:
            load_whole(_part(tensors, "objective."), objective)
            load_whole(_part(tensors, "ema."), ema)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{path} is a checkpoint of another model; give the run another --name ({said})") from None
        _restore_optimizer(optimizer, _part(tensors, "optimizer."))
        return progress, _part(tensors, "meter.")

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def _read_progress(path: Path) -> Progress:
    """Read what ``save`` wrote, all of it; ``ValueError`` for anything else."""
    text = path.read_text(encoding="utf-8")
    try:
        progress = _PROGRESS.validate_json(text, strict=True)
        lacking = {field.name for field in fields(Progress)} - json.loads(text).keys()
    except ValidationError as error:
        raise ValueError(f"its {path.name} is not what was written: {error.errors()[0]['msg']}") from None
    if lacking or (progress.best is not None and not math.isfinite(progress.best)):
        raise ValueError(f"its {path.name} is not what was written")
    return progress


def _check_whole(progress: Progress, step: int, tensors: dict[str, Tensor]) -> None:
    """Raise ``ValueError`` for a checkpoint that is of another step, or lacks a part."""
    if progress.step != step:
        raise ValueError(f"its progress.json is of step {progress.step}")
    lacking = {"objective", "ema", "optimizer", "meter"} - {name.split(".")[0] for name in tensors}
    if lacking:
        raise ValueError(f"it lacks all tensors of {' and '.join(sorted(lacking))}")


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
