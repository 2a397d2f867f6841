"""What the README says is what the package does."""

import os
import re
from pathlib import Path

import pytest

from genflow.config import Config
from genflow.config_files import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "digits.png").is_file()
    assert names["images"].shape == (80, 1, 8, 8)
    assert len(names["pictures"]) == 4
    assert names["losses"].shape == (16,)


def test_the_files_it_names_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\b(?:train|tests|assets|sample)/[\w./-]+\.(?:py|toml|md)\b", README):
        assert (ROOT / path).exists(), path


def test_the_recipes_it_names_exist() -> None:
    for recipe in re.findall(r"genflow train ([\w-]+)(?![\w/-])", README):
        if recipe.isupper():
            continue
        assert (ROOT / "train" / "configs" / f"{recipe}.toml").is_file(), recipe


def test_the_commands_it_names_exist() -> None:
    from genflow.cli.main import COMMANDS

    assert set(re.findall(r"^ +genflow ([\w-]+)", README, flags=re.MULTILINE)) <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    "result",
    [
        "tiny.md",
        "backbones.md",
        "loop.md",
        "consistency_step.md",
        "kind_step.md",
        "data.md",
        "frechet.md",
        "fid.md",
        "gpu.md",
    ],
)
def test_measured_tables_are_quoted_word_for_word(result: str) -> None:
    """Every row of a committed result that the README shows is the row that was measured."""
    measured = (ROOT / "tests" / "benchmarks" / "results" / result).read_text(encoding="utf-8")
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert rows
    assert all(row in README for row in rows), os.linesep.join(row for row in rows if row not in README)


@pytest.mark.parametrize(
    ("heading", "name", "least"),
    [("Reflow", "reflow", 40), ("Consistency models", "consistency", 76), ("KIND", "kind", 100)],
)
def test_what_is_quoted_of_longer_tables_was_measured(heading: str, name: str, least: int) -> None:
    results = (ROOT / "tests" / "benchmarks" / "results").glob(f"{name}-*.md")
    measured = [line for file in results for line in file.read_text(encoding="utf-8").splitlines()]
    section = README.split(f"### {heading}, part by part")[1].split("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) >= least
    assert all(row in measured for row in rows)


def test_the_recipes_it_shows_are_valid(tmp_path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "shown.toml").write_text(block, encoding="utf-8")
        assert load_config(tmp_path / "shown.toml") != Config()
