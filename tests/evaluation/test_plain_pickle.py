"""Plain arrays come out of pickles of every kind bit by bit; nothing else does, and nothing is ever run.

What should run code if unpickled is unpickled here too, where it can be, to show that it would.
"""

import copyreg
import os
import pickle  # noqa: TID251 (to make what is read, and to show what it would do)
import pickletools
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from genflow.evaluation.plain_pickle import read_plain_pickle

RNG = np.random.default_rng(0)
ARRAYS = {
    "mu": RNG.normal(size=5),
    "sigma": np.asfortranarray(RNG.normal(size=(5, 5))),
    "single": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "big endian": RNG.normal(size=3).astype(">f8"),
    "half": RNG.normal(size=3).astype(np.float16),
    "bytes": RNG.integers(0, 256, (4, 2), dtype=np.uint8),
    "whole": RNG.integers(-9, 9, 6),
    "bits": RNG.integers(0, 2, 6).astype(bool),
    "point": np.array(3.5),
    "strided": np.arange(20.0)[::2],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(content: bytes):
    path = Path("x.pkl")
    path.write_bytes(content)
    return read_plain_pickle(path)


def older(content: bytes) -> bytes:
    """A pickle as numpy 1 writes it."""
    for module in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        for head in (b"c", b"\x8c" + bytes([len(module)])):
            new = module.replace(b"_core", b"core")
            content = content.replace(head + module, (b"c" if head == b"c" else b"\x8c" + bytes([len(new)])) + new)
    assert b"_core" not in content
    return pickletools.optimize(content)  # which counts the lengths of frames anew


@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_out_as_they_went_in(protocol: int, numpy_1: bool):
    content = pickle.dumps({"inner": ARRAYS, "again": ARRAYS["mu"]}, protocol)
    found = read(older(content) if numpy_1 else content)
    inner = found["inner"]
    assert isinstance(inner, dict)
    assert list(inner) == list(ARRAYS)
    for name, array in ARRAYS.items():
        seen = inner[name]
        assert isinstance(seen, np.ndarray)
        assert seen.dtype == array.dtype
        np.testing.assert_array_equal(seen, array)
    np.testing.assert_array_equal(found["again"], ARRAYS["mu"])


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_and_text(protocol: int):
    held = {"n": 50_000, "large": 10**30, "x": 0.1, "yes": True, "no": None, "name": "é", "raw": b"\0\xff", "in": {}}
    assert read(pickle.dumps(held, protocol)) == held
    scalars = {"x": np.float64(0.1), "n": np.int64(-7), "f": np.float32(0.5)}
    assert read(pickle.dumps(scalars, protocol)) == {"x": 0.1, "n": -7, "f": 0.5}
    assert read(pickle.dumps(OrderedDict(b=1, a=2), protocol)) == {"b": 1, "a": 2}


def test_what_python_2_wrote():
    data = np.array([1.5, -2.0])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\n"
        b"U\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + data.tobytes()
    )
    found = read(b"\x80\x02}U\x02mu" + array + b"tbs.")
    np.testing.assert_array_equal(found["mu"], data)


class Planted:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


class State:
    """Unpickled by its state."""

    def __setstate__(self, state: object) -> None:
        os.mkdir("planted")

    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}


TOUCH = b"S'mkdir planted'\n"
CODE = {
    "REDUCE": (b"cos\nsystem\n(" + TOUCH + b"tR.", "the name 'os.system'"),
    "REDUCE in a dict": (b"\x80\x02}U\x02mu" + b"cos\nsystem\n(" + TOUCH + b"tRs.", "the name 'os.system'"),
    "posix": (b"cposix\nsystem\n(" + TOUCH + b"tR.", "the name 'posix.system'"),
    "INST": (b"(" + TOUCH + b"ios\nsystem\n.", "the instruction INST 'os.system'"),
    "OBJ": (b"(cos\nsystem\n" + TOUCH + b"o.", "the name 'os.system'"),
    "eval": (b'cbuiltins\neval\n(S\'__import__("os").mkdir("planted")\'\ntR.', "the name 'builtins.eval'"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + TOUCH + b"tR.", "the name 'os.system'"),
    "a dotted name": (
        b"\x80\x04\x8c\x05numpy\x8c\x19ctypeslib.os.system.__cal" + b"\x93(" + TOUCH + b"tR.",
        "the name 'numpy.ctypeslib",
    ),
    "STACK_GLOBAL of what is none": (b"\x80\x04K\x01K\x02\x93.", "a name that is none"),
    "getattr": (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.", "the name 'builtins.getattr'"),
    "NEWOBJ": (b"\x80\x02cos\nsystem\n(" + TOUCH + b"t\x81.", "the name 'os.system'"),
    "NEWOBJ of a stand-in": (b"\x80\x02cnumpy\nndarray\n(K\x02t\x81.", "the instruction NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04cnumpy\nndarray\n(K\x02t}\x92.", "the instruction NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\xf0(" + TOUCH + b"tR.", "the instruction EXT1 '240'"),
    "EXT4": (b"\x80\x02\x84\xf0\x00\x00\x00.", "the instruction EXT4"),
    "PERSID": (b"Pplanted\n.", "the instruction PERSID 'planted'"),
    "BINPERSID": (b"K\x01Q.", "the instruction BINPERSID"),
    "a buffer outside": (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    "calling a dict": (b"}(tR.", "a call of something that cannot be called"),
    "calling with a list": (b"cnumpy\ndtype\n]R.", "a call of something that cannot be called"),
    "ndarray called": (b"cnumpy\nndarray\n(K\x02tR.", "a call of array in an unknown form"),
    "encode otherwise": (b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "a call of encode in an unknown form"),
    "state of a class": (b"cnumpy\nndarray\n}S'__init__'\ncos\nsystem\nsb.", "the name 'os.system'"),
    "state of a stand-in": (b"cnumpy\nndarray\n}b.", "a state of an object that has none"),
    "state of a dict": (b"}}b.", "a state of an object that has none"),
    "items of a tuple": (b")K\x01K\x02s.", "an instruction for an object that is none"),
    "an object": (pickle.dumps({"mu": Planted()}), "the name 'posix.mkdir'"),
    "a state": (pickle.dumps({"mu": State()}), "State'"),
    "objects in an array": (pickle.dumps({"mu": np.array([Planted()], object)}, 4), "something else than numbers"),
    "records": (pickle.dumps({"mu": np.zeros(2, "f8,i4")}), "something else than numbers"),
    "text in an array": (pickle.dumps({"mu": np.array(["x"])}), "something else than numbers"),
    "a list": (pickle.dumps({"mu": [1.0]}), "something else than arrays and numbers under 'mu'"),
    "a class": (pickle.dumps({"mu": np.ndarray}), "something else than arrays and numbers under 'mu'"),
    "an array alone": (pickle.dumps(np.zeros(2)), "something else than arrays by name"),
    "values by number": (pickle.dumps({1: 2}), "values that are not kept by name"),
    "a function": (pickle.dumps(os.mkdir), "the name 'posix.mkdir'"),
}
RUNS = ("REDUCE", "posix", "INST", "OBJ", "eval", "STACK_GLOBAL", "EXT1", "an object", "objects in an array", "a state")


@pytest.mark.parametrize("name", CODE)
def test_everything_else_is_refused_and_named(name: str):
    content, message = CODE[name]
    if os.name == "nt":
        message = message.replace("posix", "nt")
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(ValueError, match="nothing in them is run") as caught:
            read(content)
        assert message in str(caught.value)
        assert "x.pkl" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert os.listdir() == ["x.pkl"], "nothing was run"
        if name in RUNS:
            pickle.loads(content)  # noqa: S301
            assert "planted" in os.listdir(), "it would have been"
    finally:
        copyreg.remove_extension("os", "system", 240)


def array(shape: bytes, content: bytes, code: bytes = b"f8") -> bytes:
    return (
        b"\x80\x04}\x8c\x02mucnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
        + shape
        + b"tcnumpy\ndtype\n\x8c\x02"
        + code
        + b"\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89B"
        + struct.pack("<I", len(content))
        + content
        + b"tbs."
    )


def test_sizes_must_match_their_bytes():
    np.testing.assert_array_equal(read(array(b"K\x02K\x01", bytes(16)))["mu"], np.zeros((2, 1)))
    for shape, message in [
        (b"K\x02", "does not fit its bytes"),
        (b"J\xff\xff\xff\xff", "impossible shape"),
        (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", "impossible shape"),
        (b"G" + struct.pack(">d", 1.0), "impossible shape"),
        (b"J\xff\xff\xff\x7f" * 3, "does not fit its bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(array(shape, bytes(8)))
    for code in (b"O8", b"V8", b"S8", b"M8", b"c8", b"fx"):
        with pytest.raises(ValueError, match="something else than numbers"):
            read(array(b"K\x01", bytes(8), code))


def test_nests_and_counts_take_neither_time_nor_memory():
    nested = b"\x80\x04)" + b"\x85" * 60_000 + b"."
    key = b"\x80\x04})" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"K\x01s."  # its hash would take 2^60 steps
    names = [b"\x8c\x01%c" % c for c in range(97, 123)]
    wide = b"\x80\x04}" + b"".join(name + b"K\x01s" for name in names)
    for _ in range(3):  # dicts of 26 times the same dict
        wide += b"q\x00}" + b"".join(name + b"h\x00s" for name in names)
    wide += b"."
    own = b"\x80\x04}q\x00\x8c\x01ah\x00s."
    tracemalloc.start()
    for content, message in [
        (nested, "arrays by name"),
        (b"(" * 60_000 + b".", "arrays by name"),
        (b"]" * 60_000 + b"a" * 59_999 + b".", "arrays by name"),
        (key, "not kept by name"),
        (wide, "too many values"),
        (own, "too many values"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f", "damaged"),
        (b"\x80\x04\x8e" + b"\xff" * 8, "damaged"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"].", "arrays by name"),
        (b"I" + b"9" * 100_000 + b"\n.", "damaged"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(content)
    assert read(b"\x80\x02}r\xff\xff\xff\xff.") == {}, "a memo of four thousand million places"
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_every_cut_is_refused():
    for protocol in (2, 4, 5):
        content = pickle.dumps({"fid": {"mu": np.zeros(2), "sigma": np.eye(2)}, "num_images": 7}, protocol)
        for length in range(len(content)):
            with pytest.raises(ValueError, match=r"x\.pkl"):
                read(content[:length])


def test_whatever_the_bytes_it_is_a_dict_or_one_kind_of_error():
    contents = [pickle.dumps({"fid": ARRAYS, "n": 7}, protocol) for protocol in (0, 2, 4, 5)]
    for number in range(1000):
        content = bytearray(contents[number % len(contents)])
        for place in RNG.integers(0, len(content), 1 + number % 4):
            content[place] = RNG.integers(0, 256)
        try:
            found = read(bytes(content))
        except ValueError as error:
            found = {"error": str(error)}
        assert isinstance(found, dict)
        assert "\n" not in str(found.get("error"))
    assert os.listdir() == ["x.pkl"]


def test_what_is_no_pickle(tmp_path):
    for content in (b"", b"text", b"PK\x03\x04", bytes(1000), b"\xff" * 100):
        with pytest.raises(ValueError, match=r"x\.pkl is not a pickle, or is damaged"):
            read(content)
    with pytest.raises(ValueError, match="cannot read"):
        read_plain_pickle(tmp_path / "absent.pkl")
    with pytest.raises(ValueError, match="cannot read"):
        read_plain_pickle(tmp_path)
