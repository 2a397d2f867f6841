"""Files of weights that others have published: where they lie, and their tensors, read without running any code."""

from __future__ import annotations

import io
import urllib.error
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from genflow.evaluation.networks.torchscript import is_torchscript, read_torchscript


def find_weights(given: Path | None, what: str, file: str, url: str, hash_prefix: str | None = None) -> Path:
    """Return the path of a network's weights: ``given``, or ``file`` in torch's hub cache, downloaded on first use.

    Args:
        given: the user's own file.
        what: the network's name, for messages.
        file: name of the file in the cache.
        url: where it is published.
        hash_prefix: first digits of its sha256, checked after a download.

    Raises:
        RuntimeError: ``given`` is no file, or there is none in the cache and it cannot be downloaded.
    """
    if given is not None:
        if not Path(given).is_file():
            raise RuntimeError(f"--weights {given} is not a file")
        return Path(given)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix)
        except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: the hash is another
            raise RuntimeError(
                f"the {what} weights {file} cannot be downloaded ({error}): "
                f"get {url} elsewhere and put it at {path}, or name it by --weights"
            ) from error
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name, on the CPU; no code in it is ever run.

    ``path`` is a ``.safetensors`` file; a state dict written by ``torch.save``, read by torch's restricted unpickler;
    or a TorchScript archive, of which nothing but the tensors is read.

    Raises:
        RuntimeError: it is none of these, or holds anything but tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path) and is_torchscript(path):
            return read_torchscript(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle of weights can raise anything in there
        # torch's own words advise to run whatever code the file holds
        raise RuntimeError(
            f"{path} is not a file of plain weights ({type(error).__name__}): where its origin is trusted, "
            "load it there and save its state_dict() by safetensors.torch.save_file"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise RuntimeError(f"{path} is not a state dict, which maps names to tensors: save the network's state_dict()")
    return dict(state)


def written_here(state: dict[str, Tensor]) -> io.BytesIO:
    """Return tensors as a file in memory, for code of others that insists on an unrestricted ``torch.load``.

    What it reads then are bytes that this very process has written, from tensors that were read safely.
    """
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def not_the_weights(path: Path, what: str, error: object) -> RuntimeError:
    """Return the one-line error for a file that holds the weights of something else."""
    return RuntimeError(f"{path} does not hold the weights of {what}: {first_line(error)}")


def first_line(error: object) -> str:
    """Return the first line that torch says about an error, with the one after it if the first only introduces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said if len(said) < 300 else f"{said[:300]} …"
