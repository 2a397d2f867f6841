"""Reading files of weights that others have published: plain tensors by name, never code."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("ema", "ema_state_dict", "state_dict", "model_state_dict", "model")  # averaged weights first
_PREFIXES = ("_orig_mod.", "module.", "model.", "ema.", "net.", "denoiser.")  # of torch.compile, DDP and wrappers
_HOW = "where the authors' code can be imported, save its plain tensors"
_EDM = f"{_HOW} for EDM by torch.save(pickle.load(open('NAME.pkl', 'rb'))['ema'].state_dict(), 'NAME.pt')"
_PLAIN = f"{_HOW} by torch.save(network.state_dict(), 'NAME.pt')"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file or folder of weights, by name, on the CPU.

    ``path`` is a .safetensors file; a .pt, .pth or .bin file of a state dict, bare or under the key "ema",
    "ema_state_dict", "state_dict", "model_state_dict" or "model"; or a diffusers folder, of a transformer or of a
    pipeline that has one, whose safetensors may be in several files with an index, or which has one .bin file. Prefixes
    that all names share, such as "module." and "_orig_mod.", are cut off. No code in a file is ever run.

    Raises ``ValueError`` if there is no such file, if it is damaged, empty or of another kind, if it holds anything
    but tensors, or if one of them is not finite.
    """
    files, index = _find(path)
    found: dict[str, Tensor] = {}
    for file in files:
        found |= _read_file(file)
    missing = sorted(_places(index).keys() - found.keys()) if index else []
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, which its index lists")
    if not found:
        raise ValueError(f"{path} holds no weights")
    for name, value in found.items():
        if not value.float().isfinite().all():
            raise ValueError(f"{path} holds values in {name} that are not finite numbers: the weights are damaged")
    return _cut_prefixes(found)


def weights_digest(path: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the file that ``read_weights`` reads, or of several one after the other.

    Raises ``ValueError`` as ``read_weights`` does if there are none.
    """
    digest = hashlib.sha256()
    for file in _find(path)[0]:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _find(path: Path) -> tuple[list[Path], Path | None]:
    """Return the files of weights, in the order of their names, and the index that lists them, if there is one."""
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    if path.is_file():
        return [path], None
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    chosen = _choose(folder)
    if chosen.suffix != ".json":
        return [chosen], None
    shards = [folder / name for name in sorted(set(_places(chosen).values()))]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{folder} lacks {shard.name}, which {chosen.name} lists: the download is not complete")
    return shards, chosen


def _choose(folder: Path) -> Path:
    """Return the file of weights, or the index of several, of a diffusers folder; one without a variant comes first."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    whole = [name for name in names if not re.search(r"-\d+-of-\d+", name)]
    for pattern in (r"(.+)\.safetensors(?:\.index((?:\.\w+)?)\.json)?", r"(.+)\.bin"):
        found = [match for name in whole if (match := re.fullmatch(pattern, name))]
        plain = [match for match in found if not any("." in (part or "") for part in match.groups())]
        choice = plain if len(found) > 1 else found
        if len(choice) == 1:
            return folder / choice[0][0]
        if found:
            break
    held = [name for name in names if re.search(r"\.(safetensors|bin)\b", name)]
    raise ValueError(
        f"{folder} must hold one .safetensors or .bin file, or an index of several .safetensors, and holds"
        f" {f'{len(held)}: ' + ', '.join(held) if held else 'none'}"
    )


def _places(index: Path) -> dict[str, str]:
    """Return the name of the file of each tensor: beside the index, wherever it may point."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: Path(name).name for key, name in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged: it has no readable weight_map") from None


def _read_file(path: Path) -> dict[str, Tensor]:
    match path.suffix.lower():
        case ".safetensors":
            return _read_safetensors(path)
        case ".pt" | ".pth" | ".bin":
            return _unwrap(_read_archive(path), path)
        case ".pkl":
            raise ValueError(f"{path} is a pickle, which holds code that genflow does not run: {_EDM}, and give that")
        case other:
            raise ValueError(f"{path} ends in {other!r}: weights are .safetensors, .pt, .pth or .bin files")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None


def _read_archive(path: Path) -> Any:
    """Read what torch.save wrote, refusing everything that is not plain data.

    The options of a training script count as such: a Namespace only has attributes, which nothing here looks at.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, that of the unpickler among them, which is not imported here
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"{path} holds code ({code[1]}), which genflow does not run: {_PLAIN}") from None
        raise ValueError(f"{path} is damaged or not a file of torch.save: {type(error).__name__}") from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file's content is, or holds under one of the usual keys."""
    entries = content if isinstance(content, Mapping) else {"": content}
    wrapped = [key for key in _WRAPPERS if isinstance(entries.get(key), Mapping)]
    if wrapped:
        return _unwrap(entries[wrapped[0]], path)
    strange = [str(key) for key, value in entries.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f"{path} is not a plain state dict, which maps names to tensors: {_PLAIN}")
    return dict(entries)


def _cut_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut off, again and again, the prefixes of wrappers that all names have."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _cut_prefixes({name.removeprefix(prefix): value for name, value in tensors.items()})
    return tensors
