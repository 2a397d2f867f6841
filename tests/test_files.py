import os
import platform
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from launch import start

from genflow.files import atomic_file, atomic_folder, check_place, remove_partials, replace_files, write_text


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_whole_in_folders_that_are_made_for_it(tmp_path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename across file systems would not be atomic
        assert partial.suffix == ""  # or a listing of images would find half of one
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["a", "a/b.txt"]


def test_an_exception_leaves_the_old_file(tmp_path) -> None:
    write_text(tmp_path / "f", "old")

    def fail() -> None:
        with atomic_file(tmp_path / "f") as partial:
            partial.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "d") as partial:
            (partial / content).write_text(content)
            assert not (tmp_path / "d" / "new").exists()
    assert names(tmp_path) == ["d", "d/new"]


def test_an_exception_leaves_the_old_folder(tmp_path) -> None:
    with atomic_folder(tmp_path / "d") as partial:
        (partial / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "d") as partial:
            (partial / "new").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["d", "d/old"]


def test_permissions_follow_the_umask(tmp_path, umask) -> None:
    write_text(tmp_path / "f", "text")
    with atomic_folder(tmp_path / "d"):
        pass
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~umask


def test_replacing_files_keeps_what_else_is_there_and_is_never_without_the_folder(tmp_path) -> None:
    write_text(tmp_path / "new" / "in" / "a", "new")
    write_text(tmp_path / "old" / "in" / "a", "old")
    write_text(tmp_path / "old" / "b", "kept")
    replace_files(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "in" / "a").read_text() == "new"
    assert (tmp_path / "old" / "b").read_text() == "kept"


def test_what_interrupted_writes_left_is_removed_at_any_depth_and_nothing_else(tmp_path) -> None:
    for name in (".partial-a", "x/.partial-b.png", ".partial-c/d/.partial-e", "x/kept", ".hidden"):
        write_text(tmp_path / name, "text")
    remove_partials(tmp_path)
    assert names(tmp_path) == [".hidden", "x", "x/kept"]
    remove_partials(tmp_path / "absent")


def test_partials_of_processes_at_work_stay(tmp_path) -> None:
    """By name: machine and process. Those of a process that is gone, and of nobody, go."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = ".partial-" + re.sub(r"\W", "_", platform.node())
    with atomic_file(tmp_path / "made") as partial:
        for name in (f"{mine}-{gone.pid}-x", ".partial-other_machine-1-x", f"{mine}-{os.getppid()}-x", ".partial-x"):
            (tmp_path / name).write_text("half")
        os.utime(tmp_path / ".partial-other_machine-1-x")
        remove_partials(tmp_path)
        kept = {partial.name, ".partial-other_machine-1-x", f"{mine}-{os.getppid()}-x"}
        assert set(names(tmp_path)) == kept
        os.utime(tmp_path / ".partial-other_machine-1-x", (0, 0))
        remove_partials(tmp_path)
        assert set(names(tmp_path)) == kept - {".partial-other_machine-1-x"}


def test_content_reaches_the_disk_before_names_and_names_before_the_end(tmp_path, monkeypatch) -> None:
    """What a power cut leaves follows from the order of these calls."""
    done: list[tuple[str, str]] = []

    def spy(name: str):
        real = getattr(os, name)

        def call(*arguments, **named):
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[0])
            done.append((name, Path(what).name if ".partial-" not in what else "partial"))
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace", "mkdir"):
        spy(name)
    write_text(tmp_path / "new" / "deep" / "f", "text")
    made = [call for call in done if call[0] != "mkdir"]
    assert made == [
        ("fsync", "new"),
        ("fsync", tmp_path.name),
        ("fsync", "partial"),
        ("replace", "partial"),
        ("fsync", "deep"),
    ]
    done.clear()
    with atomic_folder(tmp_path / "d") as partial:
        (partial / "f").write_text("text")
    assert [call for call in done if call[0] != "mkdir"] == [
        ("fsync", "partial"),
        ("fsync", "partial"),
        ("replace", "partial"),
        ("fsync", tmp_path.name),
    ]


def test_a_full_disk_names_the_file(tmp_path) -> None:
    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OSError, match=r"File too large: .*large.txt"):
            write_text(tmp_path / "large.txt", "x" * 2000)

    process = start(write)
    process.join()
    assert process.exitcode == 0
    assert names(tmp_path) == []


def test_a_place_that_takes_no_files_is_refused_whoever_asks(tmp_path) -> None:
    """Permissions do not tell: root may write everywhere, and nobody makes files in /proc."""
    check_place(tmp_path / "new" / "file.json")
    assert not list(tmp_path.iterdir())
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    with pytest.raises(ValueError, match=r"/proc/new/file.json cannot be written: no file can be made in .* /proc \("):
        check_place(Path("/proc/new/file.json"))
