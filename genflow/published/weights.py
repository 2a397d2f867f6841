"""Reading files of weights that others have published: plain tensors by name, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("ema", "ema_state_dict", "state_dict", "model_state_dict", "model")  # averaged weights first
_HOW = (
    "where the authors' code can be imported, save its plain tensors, for EDM by"
    " torch.save(pickle.load(open('NAME.pkl', 'rb'))['ema'].state_dict(), 'NAME.pt'), and give that file"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file or folder of weights, by name, on the CPU.

    ``path`` is a .safetensors file; a .pt, .pth or .bin file of a state dict, bare or under the key "ema",
    "ema_state_dict", "state_dict", "model_state_dict" or "model"; or a diffusers folder, of a transformer or of a
    pipeline that has one, whose safetensors may be in several files with an index. No code in a file is ever run.

    Raises ``ValueError`` if there is no such file, if it is damaged, empty or of another kind, or if it holds anything
    but tensors.
    """
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    if path.is_dir():
        found = _read_folder(path)
    else:
        match path.suffix.lower():
            case ".safetensors":
                found = _read_safetensors(path)
            case ".pt" | ".pth" | ".bin":
                found = _unwrap(_read_archive(path), path)
            case ".pkl":
                raise ValueError(f"{path} is a pickle, which holds code that genflow does not run: {_HOW}")
            case other:
                raise ValueError(f"{path} ends in {other!r}: weights are .safetensors, .pt, .pth or .bin files")
    if not found:
        raise ValueError(f"{path} holds no weights")
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None


def _read_archive(path: Path) -> Any:
    """Read what torch.save wrote, refusing everything that is not plain data."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, that of the unpickler among them, which is not imported here
        if type(error).__name__ == "UnpicklingError":
            raise ValueError(f"{path} is damaged, or holds code, which genflow does not run: {_HOW}") from None
        raise ValueError(f"{path} is damaged or not a file of torch.save: {type(error).__name__}") from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file's content is, or holds under one of the usual keys."""
    entries = content if isinstance(content, Mapping) else {"": content}
    wrapped = [key for key in _WRAPPERS if isinstance(entries.get(key), Mapping)]
    if wrapped:
        return _unwrap(entries[wrapped[0]], path)
    strange = [str(key) for key, value in entries.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f"{path} is not a plain state dict, which maps names to tensors: {_HOW}")
    return dict(entries)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the safetensors of a diffusers folder."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    indexes = sorted(inner.glob("*.safetensors.index.json"))
    if indexes:
        return _read_shards(indexes[0])
    files = sorted(inner.glob("*.safetensors"))
    if len(files) != 1:
        names = f"{len(files)}: {', '.join(file.name for file in files)}" if files else "none"
        raise ValueError(f"{inner} must hold one .safetensors file, or an index of several, and holds {names}")
    return _read_safetensors(files[0])


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged: it has no readable weight_map") from None
    found: dict[str, Tensor] = {}
    for name in names:
        shard = index.parent / Path(name).name  # beside the index, wherever the name may point
        if not shard.is_file():
            raise ValueError(f"{index.parent} lacks {name}, which {index.name} lists: the download is not complete")
        found |= _read_safetensors(shard)
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise ValueError(f"{index.parent} lacks {missing[0]}, which {index.name} lists")
    return found
