"""Pickles of plain arrays, read without unpickling: statistics of EDM2 and its like come as such.

A pickle is a program for a small machine that can call whatever Python can import. Here it is only parsed
(``pickletools``), and run by a machine of our own that knows numbers, text, dicts and the few ways in which numpy
writes an array. It imports nothing and calls nothing that a file names: a name stands for an entry of ``Standin`` or
the file is refused.
"""

from __future__ import annotations

import enum
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Plain: TypeAlias = "bool | int | float | str | bytes | npt.NDArray[Any] | dict[str, Plain] | None"

_LARGEST = 2**30  # bytes of a file; statistics of three networks take a tenth of it
_ENTRIES, _DEPTH = 1000, 4  # of dicts: one dict may be meant many times, so that few bytes could be many entries
_NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")


class Standin(enum.Enum):
    """What a name in a file may mean."""

    ARRAY = enum.auto()
    DTYPE = enum.auto()
    RECONSTRUCT = enum.auto()
    FROM_BUFFER = enum.auto()
    SCALAR = enum.auto()
    ENCODE = enum.auto()
    ORDERED_DICT = enum.auto()


_STANDINS = {
    "numpy.ndarray": Standin.ARRAY,
    "numpy.dtype": Standin.DTYPE,
    "numpy.core.multiarray._reconstruct": Standin.RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": Standin.RECONSTRUCT,
    "numpy.core.numeric._frombuffer": Standin.FROM_BUFFER,
    "numpy._core.numeric._frombuffer": Standin.FROM_BUFFER,
    "numpy.core.multiarray.scalar": Standin.SCALAR,
    "numpy._core.multiarray.scalar": Standin.SCALAR,
    "_codecs.encode": Standin.ENCODE,
    "collections.OrderedDict": Standin.ORDERED_DICT,
}  # numpy 2 has an underscore where numpy 1 had none


class _Mark:
    """Where the arguments of an instruction begin on the stack."""


class _DType:
    """A dtype whose byte order may be told later."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not (isinstance(code, str) and _NUMBERS.fullmatch(code)):
            raise _Unfit("an array of something else than numbers")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise _Unfit("an array of something else than numbers")


class _Array:
    """An array whose content is told later."""

    def __init__(self) -> None:
        self.values: npt.NDArray[Any] | None = None

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _DType() as kind, bool() | int() as fortran, bytes() | str() as content):
                held = content.encode("latin1") if isinstance(content, str) else content  # Python 2 had no bytes
                self.values = _array(held, kind, shape, "F" if fortran else "C")
            case _:
                raise _Unfit("an array in an unknown form")


class _Unfit(Exception):
    """The file holds something that is no plain array."""


def read_plain_pickle(path: Path) -> dict[str, Plain]:
    """Return the dict that a pickle holds: numbers, text, numeric arrays, and dicts of these by name.

    Pickles of protocols 0 to 5 and of numpy 1 and 2 are read. Nothing that the file names is imported or called.

    Raises:
        ValueError: the file is not there, damaged, or holds anything else; what it names is named.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path} has over {_LARGEST:,} bytes: it is no file of statistics")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        found = _Machine().run(content)
        if not isinstance(found, dict):
            raise _Unfit("something else than arrays by name")
        return _finished(found, [0], 0)
    except _Unfit as unfit:
        raise ValueError(
            f"{path} holds {unfit}: only pickles of plain numeric arrays by name are read, and nothing in them is run"
        ) from None
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} is not a pickle, or is damaged ({told})") from None


class _Machine:
    """Runs the instructions of one pickle on a stack."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> object:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _FRESH:
                self.stack.append(_FRESH[name]())
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _PUTS:
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif name in _GETS:
                self.stack.append(self.memo[argument])
            elif name in _STEPS:
                _STEPS[name](self)
            elif name == "GLOBAL":
                self.stack.append(_standin(argument.replace(" ", ".", 1)))
            elif name not in ("PROTO", "FRAME"):
                told = "" if argument is None else f" {str(argument).replace(' ', '.', 1)[:100]!r}"
                raise _Unfit(f"the instruction {name}{told}")
        raise IndexError("it ends early")

    def take(self, count: int) -> list[Any]:
        """Take so many values off the stack."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        place = len(self.stack) - 1
        while not isinstance(self.stack[place], _Mark):
            place -= 1
            if place < 0:
                raise IndexError("there is no mark")
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def top(self, kind: type) -> Any:
        """Return the top of the stack, which must be of a kind."""
        found = self.stack[-1]
        if type(found) is not kind:
            raise _Unfit("an instruction for an object that is none")
        return found

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        _fill(self.top(dict), values[::2], values[1::2])

    def find(self) -> None:
        module, name = self.take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _Unfit("a name that is none")
        self.stack.append(_standin(f"{module}.{name}"))

    def reduce(self) -> None:
        called, arguments = self.take(2)
        if not (isinstance(called, Standin) and isinstance(arguments, tuple)):
            raise _Unfit("a call of something that cannot be called")
        self.stack.append(_call(called, arguments))

    def build(self) -> None:
        (state,) = self.take(1)
        built = self.stack[-1]
        if not isinstance(built, (_DType, _Array)):
            raise _Unfit("a state of an object that has none")
        built.build(state)


_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_FRESH: Mapping[str, Callable[[], object]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_STEPS: Mapping[str, Callable[[_Machine], None]] = {
    "TUPLE1": lambda machine: machine.stack.append(tuple(machine.take(1))),
    "TUPLE2": lambda machine: machine.stack.append(tuple(machine.take(2))),
    "TUPLE3": lambda machine: machine.stack.append(tuple(machine.take(3))),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.take_marked())),
    "LIST": lambda machine: machine.stack.append(machine.take_marked()),
    "DICT": lambda machine: machine.stack.append(_dict(machine.take_marked())),
    "APPEND": lambda machine: machine.append(machine.take(1)),
    "APPENDS": lambda machine: machine.append(machine.take_marked()),
    "SETITEM": lambda machine: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.take_marked()),
    "STACK_GLOBAL": _Machine.find,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _standin(name: str) -> Standin:
    if name not in _STANDINS:
        raise _Unfit(f"the name {name[:100]!r}")
    return _STANDINS[name]


def _call(called: Standin, arguments: tuple[Any, ...]) -> object:
    match called, arguments:
        case Standin.RECONSTRUCT, (Standin.ARRAY, (0,), bytes() | str()):
            return _Array()
        case Standin.DTYPE, (_, *_) if len(arguments) <= 3:
            return _DType(*arguments)
        case Standin.FROM_BUFFER, (
            bytes() | bytearray() as held,
            _DType() as kind,
            tuple() as shape,
            "C" | "F" as order,
        ):
            array = _Array()
            array.values = _array(bytes(held), kind, shape, order)
            return array
        case Standin.SCALAR, (_DType() as kind, bytes() | str() as held):
            return _array(held.encode("latin1") if isinstance(held, str) else held, kind, (1,), "C")[0].item()
        case Standin.ENCODE, (str() as text, "latin1" | "latin-1"):
            return text.encode("latin1")
        case Standin.ORDERED_DICT, ():
            return {}
        case Standin.ORDERED_DICT, (list() as pairs,) if all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
            return _dict([value for pair in pairs for value in pair])
        case _:
            raise _Unfit(f"a call of {called.name.lower()} in an unknown form")


def _array(content: bytes, kind: _DType, shape: tuple[Any, ...], order: Any) -> npt.NDArray[Any]:
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise _Unfit("an array of an impossible shape")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise _Unfit("an array whose size does not fit its bytes")
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _dict(values: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _fill(made, values[::2], values[1::2])
    return made


def _fill(target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    for key, value in zip(keys, values, strict=True):
        if type(key) is not str:  # the hash of a nest of tuples may take for ever
            raise _Unfit("values that are not kept by name")
        target[key] = value


def _finished(found: dict[str, Any], entries: list[int], depth: int) -> dict[str, Plain]:
    """Return a dict whose arrays are whole; ``entries`` counts all that were seen."""
    entries[0] += len(found)
    if depth > _DEPTH or entries[0] > _ENTRIES:
        raise _Unfit("too many values")
    done: dict[str, Plain] = {}
    for name, value in found.items():
        match value:
            case dict():
                done[name] = _finished(value, entries, depth + 1)
            case _Array() if value.values is not None:
                done[name] = value.values
            case None | bool() | int() | float() | str() | bytes():
                done[name] = value
            case _:
                raise _Unfit(f"something else than arrays and numbers under {name[:100]!r}")
    return done
