"""Files of weights: every format gives the same tensors, and none can run code."""

import urllib.error
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genflow.evaluation.networks.torchscript import is_torchscript, read_torchscript
from genflow.evaluation.networks.weights import find_weights, first_line, read_state


class _Trap:
    """Pickles to a call that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2).half()
        self.norm = nn.BatchNorm2d(4)
        self.sizes = [1, 2, 3]
        self.name = "inner"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.half()).float())


class _Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_Inner(), nn.ReLU())
        self.scale = nn.Parameter(torch.tensor(0.07))
        base = torch.randn(6, 8)
        self.turned = nn.Parameter(base.T)
        self.register_buffer("part", base[2:4, 1::2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("count", torch.tensor([7], dtype=torch.int64))
        self.tied = self.turned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x) * self.scale


@pytest.fixture
def script(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    path, module = tmp_path / "program.pt", _Outer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but published weights are such
        torch.jit.save(torch.jit.script(module), path)
    return path, module.state_dict()


def test_tensors_of_a_torchscript_archive_are_those_of_its_module(script):
    path, expected = script
    assert is_torchscript(path)
    found = read_state(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_code_of_a_torchscript_archive_is_never_looked_at(script, tmp_path):
    path, expected = script
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "garbled.pt", "w") as new:
        for item in old.namelist():
            new.writestr(item, b"def nonsense" if "/code/" in item else old.read(item))
    assert read_state(tmp_path / "garbled.pt").keys() == expected.keys()


@pytest.mark.parametrize("kind", ["plain", "torchscript"])
def test_weights_never_run_code(tmp_path, kind):
    path, mark = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save({"weight": _Trap(mark)}, path)
    if kind == "torchscript":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("evil/constants.pkl", b"")
        assert is_torchscript(path)
        with pytest.raises(ValueError, match="holds no tensors"):  # the call is a record of its name
            read_torchscript(path)
    else:
        with pytest.raises(RuntimeError, match=r"evil\.pth is not a file of plain weights") as caught:
            read_state(path)
        assert "\n" not in str(caught.value)
        assert "save_file" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"garbage",
        b"\x80\x02}",
        b"\x80\x02(\x8c\x01ai\x01\n.",
        b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x81.",
        b"\x80\x02h\x07.",
    ],
)
def test_damaged_descriptions_are_refused(tmp_path, description):
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("damaged/constants.pkl", b"")
        archive.writestr("damaged/data.pkl", description)
    with pytest.raises(RuntimeError, match="is not a file of plain weights") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [4, 3, 0])
def test_torchscript_archives_with_too_few_numbers_are_refused(script, tmp_path, left):
    """Nothing is read beyond what the archive holds."""
    with zipfile.ZipFile(script[0]) as old, zipfile.ZipFile(tmp_path / "short.pt", "w") as new:
        for item in old.namelist():
            new.writestr(item, old.read(item)[:left] if "/data/" in item else old.read(item))
    with pytest.raises(RuntimeError, match="is not a file of plain weights"):
        read_state(tmp_path / "short.pt")


def test_a_cache_that_cannot_be_made_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match=r"the Net weights net\.pth cannot be downloaded .* or name it by --weights"):
        find_weights(None, "Net", "net.pth", "https://example.org/net.pth")


def test_all_formats_hold_the_same_tensors(tmp_path):
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).half()}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_what_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme", "no weights")
    for name in ("text.pth", "text.safetensors", "zip.pt"):
        with pytest.raises(RuntimeError, match="is not a file of plain weights"):
            read_state(tmp_path / name)
    for content in ([torch.zeros(2)], {"epoch": 3}, {"model": {"w": torch.zeros(2)}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(RuntimeError, match="is not a state dict"):
            read_state(tmp_path / "other.pth")


def test_weights_are_given_cached_or_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(url: str, target: str, hash_prefix: str | None = None) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    cached = tmp_path / "checkpoints" / "net.pth"
    for _ in range(2):
        assert find_weights(None, "Net", "net.pth", "https://example.org/net.pth", "abc") == cached
    assert asked == [("https://example.org/net.pth", "abc")], "once"
    own = tmp_path / "own.pth"
    own.write_bytes(b"")
    assert find_weights(own, "Net", "net.pth", "https://example.org/net.pth") == own
    with pytest.raises(RuntimeError, match=r"--weights .*nowhere\.pth is not a file"):
        find_weights(tmp_path / "nowhere.pth", "Net", "net.pth", "https://example.org/net.pth")


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no network"), OSError("full"), RuntimeError("invalid hash value")]
)
def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch, error):
    def download(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(RuntimeError) as caught:
        find_weights(None, "Net", "net.pth", "https://example.org/net.pth")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("net.pth", "https://example.org/net.pth", str(tmp_path / "checkpoints" / "net.pth"), "--weights"):
        assert part in message
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_first_lines_say_something():
    assert first_line(RuntimeError("Error(s) in loading:\n\tMissing key(s): a\n\tmore")) == (
        "Error(s) in loading: Missing key(s): a"
    )
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 1000))) < 310
