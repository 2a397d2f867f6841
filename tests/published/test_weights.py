"""Files of weights: every form read gives the same tensors, nothing in them is run, and what is wrong is said."""

import argparse
import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genflow.published.weights import read_weights, weights_digest

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


PLAIN = r"by torch\.save\(network\.state_dict\(\), 'NAME\.pt'\)$"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.pkl", r"code that genflow does not run: .* for EDM by .*\['ema'\]\.state_dict\(\)"),
        ("x.pt", rf"holds code \(io\.open\), which genflow does not run: .* plain tensors {PLAIN}"),
    ],
)
def test_code_is_refused_not_run(tmp_path, name, message):
    torch.save({"ema": Trap(tmp_path / "sprung")}, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_checkpoints_of_dit_are_read_with_the_options_in_them(tmp_path):
    raw = {key: value + 1 for key, value in TENSORS.items()}
    options = argparse.Namespace(model="DiT-XL/2", global_seed=0, ckpt=None)
    torch.save({"model": raw, "ema": TENSORS, "opt": {"state": {0: {"step": 3}}}, "args": options}, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"))
    torch.save({"args": options}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=rf"not a plain state dict, .* {PLAIN}"):
        read_weights(tmp_path / "y.pt")


def test_options_hide_no_code(tmp_path):
    """Neither in an attribute, nor in a method that unpickling would call, nor by the module that they come from."""

    class Setter:
        def __reduce__(self):  # its state would be given to open
            return argparse.Namespace, (), {"__setstate__": open}

    trap = Trap(tmp_path / "sprung")
    for k, hidden in enumerate((argparse.Namespace(seed=trap), Setter(), argparse.ArgumentParser, argparse.FileType())):
        torch.save({"ema": TENSORS, "args": hidden}, tmp_path / f"{k}.pt")
        with pytest.raises(ValueError, match="holds code"):
            read_weights(tmp_path / f"{k}.pt")
    assert not (tmp_path / "sprung").exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # for nobody else's files


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "ema.", "net.", "denoiser.", "model.", "module.", "module._orig_mod.net.module.ema.model."]
)
def test_prefixes_that_all_names_have_are_cut_off(tmp_path, prefix):
    tensors = {prefix + key: value for key, value in TENSORS.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    same(read_weights(tmp_path / "x.safetensors"))
    save_file(tensors | {"last": torch.ones(1)}, tmp_path / "y.safetensors")
    assert read_weights(tmp_path / "y.safetensors").keys() == {*tensors, "last"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, dtype):
    broken = torch.tensor([0.0, value, 1.0]).to(dtype)
    torch.save({"ema": TENSORS | {"b.weight": broken}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds values in b\.weight that are not finite"):
        read_weights(tmp_path / "x.pt")
    torch.save({"ema": TENSORS, "model": {"b.weight": broken}}, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"))  # those that are not used may be anything


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize("inner", [".", "transformer"])
@pytest.mark.parametrize("others", [(), ("fp16.bin",), ("ema.bin", "fp16.bin")])
def test_folders_with_bin_files_alone(tmp_path, inner, others):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    torch.save(TENSORS, folder / f"{STEM}.bin")
    for other in others:
        torch.save({"a.weight": torch.zeros(1)}, folder / f"{STEM}.{other}")
    same(read_weights(tmp_path))
    torch.save({"a.weight": Trap(tmp_path / "sprung")}, folder / f"{STEM}.bin")
    with pytest.raises(ValueError, match="holds code"):
        read_weights(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "others",
    [
        [f"{STEM}.fp16.safetensors"],
        [f"{STEM}.ema.safetensors", f"{STEM}.fp16.safetensors"],
        [f"{STEM}.bin", "optimizer.bin"],
        [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-00001-of-00001.safetensors"],
    ],
)
def test_the_file_without_a_variant_comes_first(tmp_path, others):
    for other in others:
        (tmp_path / other).write_text("not read")
    save_file(TENSORS, tmp_path / f"{STEM}.safetensors")
    same(read_weights(tmp_path))
    (tmp_path / f"{STEM}.safetensors").unlink()
    shards(tmp_path)
    same(read_weights(tmp_path))


@pytest.mark.parametrize("name", ["v1.5.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"])
def test_a_lone_file_of_any_name_is_read(tmp_path, name):
    save_file(TENSORS, tmp_path / name) if name.endswith("s") else torch.save(TENSORS, tmp_path / name)
    same(read_weights(tmp_path))


def test_two_variants_alone_are_ambiguous(tmp_path):
    for name in ("ema", "fp16"):
        save_file(TENSORS, tmp_path / f"{STEM}.{name}.safetensors")
    with pytest.raises(ValueError, match=rf"holds 2: {STEM}\.ema\.safetensors, {STEM}\.fp16\.safetensors"):
        read_weights(tmp_path)


def test_digest_is_of_the_weights_one_after_the_other(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert weights_digest(tmp_path / "x.safetensors") == sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    (tmp_path / "folder").mkdir()
    shards(tmp_path / "folder")
    parts = sorted((tmp_path / "folder").glob("*.safetensors"))
    assert len(parts) == 2
    assert weights_digest(tmp_path / "folder") == sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()


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
