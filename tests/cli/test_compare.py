"""``genflow compare`` in the terminal."""

import subprocess
import sys
from pathlib import Path

import pytest
from figures import result

from genflow.cli.main import main
from genflow.evaluation.protocol import save_results


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with files of results."""
    monkeypatch.chdir(tmp_path)
    steps = [result(9.0 / k, samples__sampling__steps=k) for k in (1, 2, 4)]
    save_results(tmp_path / "a.json", steps)
    save_results(tmp_path / "b.json", [result(3.0)])
    save_results(tmp_path / "more.json", [result(1.0, samples__n=5000, reference__split="all")])
    (tmp_path / "other").mkdir()
    save_results(tmp_path / "other" / "a.json", [result(5.0)])
    return tmp_path


def compared(capsys, *arguments: str) -> list[str]:
    """Run the command, and return the rows of its table."""
    assert main(["compare", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return [line for line in shown.out.splitlines() if line.startswith("|")][2:]


def refused(capsys, *arguments: str) -> str:
    assert main(["compare", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("genflow: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_files_of_one_protocol_are_ranked(capsys):
    found = compared(capsys, "a.json", "b.json")
    assert [row.split(" | ")[1].strip() for row in found] == ["a.json", "b.json", "a.json", "a.json"]
    assert [row.split(" | ")[4].strip() for row in found] == ["4", "4", "2", "1"]


def test_files_of_one_name_are_told_apart_and_a_file_given_twice_is_one(capsys):
    text = "\n".join(compared(capsys, "a.json", "other/a.json", "a.json"))
    assert text.count("other/a.json") == 1
    assert text.count("a.json") == 4


def test_other_protocols_are_refused_until_they_are_ignored(capsys):
    said = refused(capsys, "b.json", "more.json")
    assert "samples.n is 599 in b.json, 5000 in more.json" in said
    assert "--ignore samples.n --ignore reference.split" in said
    assert "samples.n" not in refused(capsys, "b.json", "more.json", "--ignore", "samples.n")
    ignored = ("--ignore", "samples.n", "--ignore", "reference.split")
    assert len(compared(capsys, "b.json", "more.json", *ignored)) == 2
    assert len(compared(capsys, *ignored, "--", "b.json", "more.json")) == 2


def test_what_cannot_be_read_is_named(capsys):
    Path("old.json").write_text('{"distance": 1.0, "features": "digits:ab"}')
    Path("text.json").write_text("{")
    assert "old.json is not a file that `genflow fid --out` wrote (format 2): measure anew" in refused(
        capsys, "b.json", "old.json"
    )
    assert "text.json" in refused(capsys, "text.json")
    assert "nowhere.json is not there" in refused(capsys, "nowhere.json")
    assert "nothing to compare" in refused(capsys)
    assert "did you mean reference.hash?" in refused(capsys, "b.json", "--ignore", "reference.hsh")


def test_the_table_is_written_as_it_is_printed(capsys):
    assert main(["compare", "a.json", "b.json", "--out", "table.md"]) == 0
    assert Path("table.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_comparing_needs_no_torch():
    code = "import sys; from genflow.cli.main import main; code = main(['compare', 'a.json', 'b.json'])"
    code += "; sys.exit(code or ', '.join({'torch', 'numpy', 'diffusers'} & {*sys.modules}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
