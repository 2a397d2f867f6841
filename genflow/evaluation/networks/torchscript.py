"""The tensors of a TorchScript archive, without its code.

OpenAI's CLIP weights are published as TorchScript programs, which ``torch.jit.load`` would compile and
``torch.load(weights_only=True)`` refuses. Such an archive is a zip: ``data.pkl`` describes the tree of modules in
pickle's language, ``data/N`` hold the numbers. Here the description is taken apart by ``pickletools``, the standard
library's disassembler, which only names the instructions; those that such a description consists of are followed below
with inert stand-ins: every class is a name, every call other than the rebuilding of a tensor a record of its arguments.
So there is nothing that could run code.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Record:
    """Stands for an object: what its class or maker is called, and what it holds."""

    name: object
    content: Any


def is_torchscript(path: Path) -> bool:
    """Say whether a zip file is a TorchScript archive, which a file of ``torch.save`` never is."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive that ``torch.jit.save`` wrote, under their names in ``state_dict()``.

    Those of constant attributes come along. No code of the archive is run.

    Raises:
        ValueError: the archive is damaged or has no tensors, or its description holds instructions that TorchScript
            does not write.
    """
    with zipfile.ZipFile(path) as archive:
        places = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(places) != 1:
            raise ValueError(f"{path} has {len(places)} data.pkl instead of one")
        root = places[0].removesuffix("data.pkl")
        found = dict(_tensors(_Description(archive, root).content(), ""))
    if not found:
        raise ValueError(f"{path} holds no tensors")
    return found


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, _Record):
        yield from _tensors(value.content, prefix)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{prefix}.{key}" if prefix else str(key))


class _Description:
    """Follows the instructions of ``data.pkl`` with stand-ins."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memory: dict[int, Any] = {}
        self._numbers: dict[str, Tensor] = {}

    def content(self) -> Any:
        for code, argument, _ in pickletools.genops(self._archive.read(f"{self._root}data.pkl")):
            if code.name == "STOP":
                return self._stack.pop()
            self._follow(code.name, argument)
        raise ValueError("the description of the modules has no end")

    def _follow(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO":
                pass
            case "MARK":
                self._marks.append(len(self._stack))
            case "BINPUT" | "LONG_BINPUT":
                self._memory[argument] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                self._stack.append(self._memory[argument])
            case "SETITEMS" | "SETITEM":
                added = self._since_mark() if name == "SETITEMS" else self._take(2)
                self._stack[-1].update(zip(added[::2], added[1::2], strict=True))
            case "APPENDS" | "APPEND":
                added = self._since_mark() if name == "APPENDS" else self._take(1)
                self._stack[-1].extend(added)
            case "BUILD":
                state = self._stack.pop()
                self._stack[-1].content = state
            case _:
                self._stack.append(self._value(name, argument))

    def _value(self, name: str, argument: Any) -> Any:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in _LITERALS:
            return argument
        if name in _TUPLES:
            return tuple(self._take(_TUPLES[name]))
        match name:
            case "GLOBAL":
                return _Record(argument, None)
            case "EMPTY_DICT":
                return {}
            case "EMPTY_LIST":
                return []
            case "EMPTY_TUPLE":
                return ()
            case "TUPLE":
                return tuple(self._since_mark())
            case "NEWOBJ":
                maker, arguments = self._take(2)
                return _Record(maker.name, arguments)
            case "BINPERSID":
                return self._storage(*self._stack.pop()[1:3])
            case "REDUCE":
                maker, arguments = self._take(2)
                return self._made(maker.name, arguments)
            case _:
                raise ValueError(f"the description of the modules holds {name}, which TorchScript does not write")

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        match name:
            case "torch._utils _rebuild_tensor_v2":
                numbers, offset, shape, strides = arguments[:4]
                return _view(numbers, offset, shape, strides)
            case "collections OrderedDict":
                return {}
            case _:
                return _Record(name, None)

    def _storage(self, kind: _Record, key: str) -> Tensor:
        if key not in self._numbers:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            dtype = _DTYPES[str(kind.name)]
            self._numbers[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._numbers[key]

    def _take(self, count: int) -> list[Any]:
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _since_mark(self) -> list[Any]:
        return self._take(len(self._stack) - self._marks.pop())


def _view(numbers: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    if math.prod(shape) == 0:
        return numbers.new_empty(shape)
    return numbers.as_strided(shape, strides, offset).clone()
