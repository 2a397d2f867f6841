"""Files of weights: every form read gives the same tensors, nothing in them is run, and what is wrong is said."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genflow.published.weights import read_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], value) for key, value in TENSORS.items())


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    same(read_weights(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("wrapper", ["", "ema", "state_dict", "model", "model_state_dict"])
def test_state_dicts_bare_and_wrapped(tmp_path, suffix, wrapper):
    path = tmp_path / f"x.{suffix}"
    torch.save({wrapper: TENSORS, "step": 3} if wrapper else TENSORS, path)
    same(read_weights(path))


def test_averaged_weights_come_first(tmp_path):
    raw = {key: value + 1 for key, value in TENSORS.items()}
    torch.save({"model": raw, "ema": TENSORS, "opt": {"lr": 1.0}}, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"))


@pytest.mark.parametrize("inner", [".", "transformer"])
def test_diffusers_folders(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    save_file(TENSORS, folder / "diffusion_pytorch_model.safetensors")
    same(read_weights(tmp_path))


def shards(folder):
    weight_map = {}
    for k, (key, value) in enumerate(TENSORS.items()):
        name = f"diffusion_pytorch_model-{k + 1:05}-of-00002.safetensors"
        save_file({key: value}, folder / name)
        weight_map[key] = name
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_sharded_folders(tmp_path):
    shards(tmp_path)
    same(read_weights(tmp_path))


def test_incomplete_shards_are_named(tmp_path):
    index = shards(tmp_path)
    (tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks .*-00002-of-00002\.safetensors, .* not complete"):
        read_weights(tmp_path)
    index.write_text(index.read_text().replace("00002-of", "00001-of"))
    with pytest.raises(ValueError, match=r"lacks a\.bias"):
        read_weights(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no readable weight_map"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["x.pkl", "x.pt"])
def test_code_is_refused_not_run(tmp_path, name):
    torch.save({"ema": Trap(tmp_path / "sprung")}, tmp_path / name)
    with pytest.raises(ValueError, match=r"code, which|code that genflow does not run.*\['ema'\]\.state_dict\(\)"):
        read_weights(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"", "damaged"),
        ("x.safetensors", b"nonsense" * 10, "damaged"),
        ("x.pt", b"", "damaged"),
        ("x.pt", b"PK\x03\x04 cut off", "damaged"),
        ("x.pt", b"nonsense", "damaged"),
        ("x.ckpt", b"", "ends in '.ckpt': weights are .safetensors, .pt, .pth or .bin"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights"),
        ([torch.ones(1)], "not a plain state dict"),
        ({"a": torch.ones(1), "b": "text"}, "not a plain state dict"),
        ({3: torch.ones(1)}, "not a plain state dict"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "x.pt")


def test_missing_and_ambiguous_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file or folder .*nowhere"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds none"):
        read_weights(tmp_path)
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"holds 2: a\.safetensors, b\.safetensors"):
        read_weights(tmp_path)


def test_a_truncated_archive_is_damaged(tmp_path):
    torch.save({"a": torch.from_numpy(np.arange(5000.0))}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        read_weights(tmp_path / "x.pt")
