"""What subcommands that use a saved model share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from genflow.denoiser import Denoiser


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


def is_model(path: str) -> bool:
    """Tell whether a path is a saved model rather than images."""
    return any((Path(path) / name).is_file() for name in ("model_index.json", "config.json"))


def load_model(path: str, device: torch.device) -> Denoiser:
    """Load a saved model, or the model of a run folder, onto a device."""
    inner = Path(path) / "model"
    denoiser = Denoiser.from_pretrained(inner if is_model(str(inner)) else path)
    nn.Module.to(denoiser, device)  # diffusers' own says nothing of the type it returns
    return denoiser


def weights_hash(denoiser: nn.Module) -> str:
    """Return the sha256 of all weights, in the order of their names: which model it is, whatever file it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
