"""The demonstrations, made short: every part runs, what they name is there, and a second call takes what there is."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from genflow.cli import demo as plain
from genflow.cli import demo_reflow as reflow
from genflow.cli.main import main
from genflow.config_files import load_config
from genflow.denoiser import Denoiser

pytestmark = pytest.mark.slow


@pytest.fixture
def short(monkeypatch):
    def load(path: Path):
        config = load_config(path)
        return replace(config, train=replace(config.train, steps=20, preview_every=20, checkpoint_every=20))

    for module in (plain, reflow):
        monkeypatch.setattr(module, "load_config", load)
        monkeypatch.setattr(module, "STEPS", (1, 2))
    monkeypatch.setattr(reflow, "PAIRS", 256)


def test_the_demonstrations_run_and_leave_what_they_name(short, tmp_path, capsys) -> None:
    assert main(["demo-reflow", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "demo-reflow"
    report = (folder / "report.md").read_text()
    assert report in printed
    pictures = re.findall(r"\]\((.*?\.png)\)", report)
    assert {"before-1.png", "after-1.png", "paths.png", "real.png"} <= set(pictures)
    assert all((folder / picture).is_file() for picture in pictures)
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:2] for row in rows[1:-1]] == [
        ["| rectified flow", "1"],
        ["| rectified flow", "2"],
        ["| 2-RF++", "1"],
        ["| 2-RF++", "2"],
    ]
    assert Denoiser.from_pretrained(folder / "model").sampler == "straight"
    written = (tmp_path / "demo" / "checkpoints").stat().st_mtime_ns, (folder / "checkpoints").stat().st_mtime_ns
    assert main(["demo", "--out", str(tmp_path)]) == 0  # of which the first half is there already
    assert main(["demo-reflow", "--out", str(tmp_path)]) == 0
    assert written == (
        (tmp_path / "demo" / "checkpoints").stat().st_mtime_ns,
        (folder / "checkpoints").stat().st_mtime_ns,
    )
    assert (tmp_path / "demo" / "report.md").is_file()


def test_pairs_of_another_flow_are_not_trained_on(short, tmp_path, capsys) -> None:
    """A run of another seed in the same folder would be a model of other noise."""
    assert main(["demo-reflow", "--out", str(tmp_path)]) == 0
    assert main(["demo-reflow", "--out", str(tmp_path), "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err
