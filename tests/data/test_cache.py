"""The cache: known by content, shared by processes, and whole whatever is done to it."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data import building, digests
from genflow.data.decoding import Decoding
from genflow.data.folder import image_folder
from genflow.files import atomic_folder

COUNT = 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty images, whose content is their number, in files of one length."""
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(COUNT):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(folder / f"{n:02}.bmp")
    return folder


def sound(images: np.ndarray) -> bool:
    return np.array_equal(images, np.broadcast_to(np.arange(COUNT).reshape(-1, 1, 1, 1), (COUNT, 3, 8, 8)))


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/decoded"))


def partials(cache: Path) -> list[Path]:
    return list(cache.rglob(".partial-*"))


def change(file: Path) -> None:
    """Another picture in a file of the same length, with its old times."""
    stat = file.stat()
    Image.fromarray(np.full((8, 8, 3), 255 - np.asarray(Image.open(file))[0, 0, 0], np.uint8)).save(file)
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The folders that are decoded, in order."""
    found: list[str] = []
    original = building._decode_into

    def count(folder: Path, encoded: building.Encoded, decoding: Decoding) -> None:
        found.append(encoded.where)
        original(folder, encoded, decoding)

    monkeypatch.setattr(building, "_decode_into", count)
    return found


def test_copies_moves_and_touches_share_one_cache(root, cache, decoded):
    first = image_folder(root, cache=cache)
    shutil.copytree(root, root.with_name("copy"))
    for file in root.iterdir():
        os.utime(file, ns=(1, 1))
    touched = image_folder(root, cache=cache)
    root.rename(root.with_name("moved"))
    others = [image_folder(root.with_name(name), cache=cache) for name in ("copy", "moved")]
    assert len(decoded) == len(kept(cache)) == 1
    for data in (touched, *others):
        assert data.fingerprint == first.fingerprint
        assert sound(data.images)
    assert others[0].name == "copy"


@pytest.mark.parametrize("what", ["byte", "more", "fewer", "options", "order"])
def test_whatever_changes_the_images_has_them_decoded_anew(root, cache, decoded, what: str):
    first = image_folder(root, cache=cache)
    match what:
        case "byte":
            change(root / "07.bmp")
        case "more":
            shutil.copy(root / "00.bmp", root / "99.bmp")
        case "fewer":
            (root / "39.bmp").unlink()
        case "order":
            (root / "00.bmp").rename(root / "zz.bmp")
    second = image_folder(root, decoding=Decoding(size=4 if what == "options" else None), cache=cache)
    assert len(decoded) == 2
    assert second.fingerprint != first.fingerprint
    if what == "byte":
        assert (second.images[7] == 255 - 7).all()


def test_only_changed_files_are_read_again(root, cache, monkeypatch):
    read: list[str] = []
    original = digests._digest

    def count(path: str, *arguments) -> bytes:
        read.append(Path(path).name)
        return original(path, *arguments)

    monkeypatch.setattr(digests, "_digest", count)
    image_folder(root, cache=cache)
    assert len(read) == COUNT
    read.clear()
    image_folder(root, cache=cache)
    assert len(read) == COUNT, "files of this second may still change unseen"
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    image_folder(root, cache=cache)
    read.clear()
    change(root / "07.bmp")
    image_folder(root, cache=cache)
    assert read == ["07.bmp"]
    read.clear()
    next((cache / "digests").iterdir()).write_bytes(b"garbage")
    image_folder(root, cache=cache)
    assert len(read) == COUNT


@pytest.mark.parametrize("held", [0, 1000, 2**25])
def test_what_is_decoded_is_what_was_digested(root, cache, monkeypatch, held: int):
    """Files that change in between are named, except for those held in memory since."""
    monkeypatch.setattr(digests, "HELD_BYTES", held)

    def late(*arguments):
        change(root / "00.bmp")
        change(root / "39.bmp")
        return building.decode_once(*arguments)

    monkeypatch.setattr("genflow.data.folder.decode_once", late)
    if held == 2**25:
        assert sound(image_folder(root, cache=cache).images)
        return
    with pytest.raises(ValueError, match=r"39\.bmp \(it changed while it was read") as caught:
        image_folder(root, cache=cache)
    assert ("00.bmp (" in str(caught.value)) == (held == 0)
    assert not kept(cache)


@pytest.mark.parametrize(
    "damage", ["short", "long", "header", "no images", "no meta", "bad meta", "other meta", "empty"]
)
def test_damage_is_mended(root, cache, decoded, damage: str):
    image_folder(root, cache=cache)
    (place,) = kept(cache)
    images, meta = place / "images.npy", place / "meta.json"
    match damage:
        case "short":
            os.truncate(images, images.stat().st_size - 1)
        case "long":
            images.write_bytes(images.read_bytes() + b"x")
        case "header":
            images.write_bytes(b"x" * images.stat().st_size)
        case "no images":
            images.unlink()
        case "no meta":
            meta.unlink()
        case "bad meta":
            meta.write_text("{")
        case "other meta":
            meta.write_text("[]")
        case "empty":
            images.write_bytes(b"")
    assert sound(image_folder(root, cache=cache).images)
    assert len(decoded) == 2
    assert len(kept(cache)) == 1
    assert not partials(cache)


def test_an_error_or_an_interrupt_leaves_nothing(root, cache, monkeypatch):
    original, calls = building._decoded, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(building, "_decoded", stop)
        with pytest.raises(KeyboardInterrupt):
            image_folder(root, cache=cache)
    assert not kept(cache)
    assert not partials(cache)
    assert sound(image_folder(root, cache=cache).images)


def test_threads_of_one_process_share_the_work_too(root, cache, decoded):
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(image_folder(root, cache=cache).images)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1
    assert len(found) == 4
    assert all(sound(images) for images in found)


LOAD = """
import sys, time
from pathlib import Path
from genflow.data import building
from genflow.data.folder import image_folder
root, cache, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
build, decoded = building._decode_into, building._decoded
def noted(*arguments):
    with log.open("a") as file:
        file.write("decoding\\n")
    build(*arguments)
def slow(*arguments):
    time.sleep(pause)
    return decoded(*arguments)
building._decode_into, building._decoded = noted, slow
start = time.time() + 20
while not (root.parent / "go").exists() and time.time() < start:
    time.sleep(0.01)
print(image_folder(root, cache=cache).fingerprint)
"""


def start(root: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(root), str(cache), str(root.parent / "log"), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_four_processes_one_decodes(root, cache):
    processes = [start(root, cache, 0.02) for _ in range(4)]
    time.sleep(0.3)
    (root.parent / "go").touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert len({out for out, _ in outputs}) == 1
    assert (root.parent / "log").read_text() == "decoding\n"
    assert outputs[0][0].strip() == image_folder(root, cache=cache).fingerprint
    assert not partials(cache)


def wait_for_builder(root: Path, number: int) -> None:
    limit = time.monotonic() + 60
    while (root.parent / "log").read_text().count("decoding") < number:
        assert time.monotonic() < limit, "no process began to build"
        time.sleep(0.01)


def test_killed_builders_leave_a_cache_that_works(root, cache):
    """Killed at random moments; a second process waits on the lock of one of them and takes over."""
    (root.parent / "go").touch()
    (root.parent / "log").touch()
    chance, interrupted = random.Random(0), 0
    for number in range(6):
        process = start(root, cache, 0.03)
        wait_for_builder(root, number + 1)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        interrupted += bool(partials(cache))
    assert interrupted > 2
    dying = start(root, cache, 0.1)
    wait_for_builder(root, 7)
    waiting = start(root, cache, 0.0)
    time.sleep(0.5)
    dying.kill()
    dying.communicate()
    out, error = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, error
    data = image_folder(root, cache=cache)
    assert out.strip() == data.fingerprint
    assert sound(data.images)
    assert not partials(cache)


def test_leftovers_of_another_set_are_removed_unless_it_is_being_built(root, cache):
    (cache / "images" / "dead" / ".partial-x").mkdir(parents=True)
    (cache / "images" / "dead" / ".partial-x" / "images.npy").write_bytes(b"half")
    with atomic_folder(cache / "images" / "living" / "decoded") as living:
        image_folder(root, cache=cache)
        assert partials(cache) == [living]


def test_a_cache_that_is_removed_meanwhile_is_made_again(root, cache, monkeypatch):
    original, calls = building._decode_into, []

    def remove_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            shutil.rmtree(cache)
        original(*arguments)

    monkeypatch.setattr(building, "_decode_into", remove_first)
    assert sound(image_folder(root, cache=cache).images)
    assert len(calls) == 2
    assert len(kept(cache)) == 1


def test_a_change_that_the_memo_does_not_see_is_seen_when_the_file_is_read(root, cache, monkeypatch):
    """Writes through a memory map may leave the times as they were; here none are looked at."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    monkeypatch.setattr(digests, "_stat", lambda _: (1, 1, 1, 1))
    image_folder(root, cache=cache)
    change(root / "07.bmp")
    seen = image_folder(root, decoding=Decoding(channels=1), cache=cache).images
    assert (seen[7] == 255 - 7).all()
    assert (image_folder(root, cache=cache).images[7] == 255 - 7).all()


NEEDED = "7,680 bytes"  # 40 x 3 x 8 x 8


def refused(root: Path, cache: Path, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"cannot keep the {NEEDED} .*{cache} .*{reason}.*GENFLOW_CACHE") as caught:
        image_folder(root, cache=cache)
    assert "\n" not in str(caught.value)
    assert not kept(cache)
    assert not partials(cache)


def test_room_is_looked_at_before_anything_is_written(root, cache, monkeypatch):
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(root, cache, "1,000 bytes are free")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_is_one_sentence(root, cache, monkeypatch, code: int):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        advice = "let it be written" if code == errno.EIO else "make room there"
        refused(root, cache, f"{os.strerror(code)}.*: {advice}")
    assert sound(image_folder(root, cache=cache).images)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written(root, cache, monkeypatch, code: int):
    image_folder(root, cache=cache)
    original = os.mkdir

    def mkdir(path, *arguments, **options):
        if str(path).startswith(str(cache)):
            raise OSError(code, os.strerror(code))
        original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir)
        assert sound(image_folder(root, cache=cache).images), "what is there is read"
        change(root / "00.bmp")
        with pytest.raises(RuntimeError, match=f"{NEEDED} .*{os.strerror(code)}.*GENFLOW_CACHE"):
            image_folder(root, cache=cache)


def test_a_cache_folder_that_is_a_file(root, cache):
    cache.write_text("not a folder")
    refused(root, cache, "(File exists|Not a directory)")


def test_a_real_limit_on_the_size_of_files(root, cache):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from pathlib import Path; from genflow.data.folder import image_folder;"
        "image_folder(sys.argv[1], cache=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"RuntimeError: cannot keep the {NEEDED} of decoded images")
    assert os.strerror(errno.EFBIG) in last
    assert not partials(cache)
    assert sound(image_folder(root, cache=cache).images)
