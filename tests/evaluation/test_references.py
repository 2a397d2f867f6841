"""Files of statistics, ours and those of others: written here as their tools write them, and read back bit by bit."""

import json
import pickle  # noqa: TID251 (to make what is read)
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.evaluation.protocol import ImageSet, NetworkIdentity, unknown
from genflow.evaluation.references import is_reference, load_reference, save_reference
from genflow.evaluation.statistics import FeatureStats

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 5))
MU, SIGMA = ROWS.mean(axis=0), np.cov(ROWS, rowvar=False)
SPATIAL = RNG.normal(size=(60, 3))
MU_S, SIGMA_S = SPATIAL.mean(axis=0), np.cov(SPATIAL, rowvar=False)
IMAGES = ImageSet(
    name="photos",
    n=60,
    hash="abc",
    split="all",
    shape=(3, 8, 8),
    codec="jpeg+png",
    resize="bicubic antialiased 8x8",
    colour="rgb + converted",
    quantisation="uint8",
)
NETWORK = NetworkIdentity(
    name="inception", weights="1234", resize="bilinear 299x299", quantisation="float", dtype="float32", dims=5
)


def same(stats: FeatureStats | None, mean: np.ndarray = MU, covariance: np.ndarray = SIGMA) -> bool:
    assert stats is not None
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(stats.covariance, covariance, rtol=1e-12)
    return True


def nothing_known(images: ImageSet, path: Path, *but: str) -> bool:
    assert images.name == path.name
    assert images.hash == sha256(path.read_bytes()).hexdigest()
    missing = {"n", "split", "shape", "codec", "resize", "colour", "quantisation"} - set(but)
    return set(unknown(images)) == missing


# Ours


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "x.npz"
    stats, spatial = FeatureStats.of(torch.from_numpy(ROWS)), FeatureStats.of(torch.from_numpy(SPATIAL))
    save_reference(path, stats=stats, spatial=spatial, images=IMAGES, network=NETWORK)
    found = load_reference(path)
    assert same(found.stats)
    assert same(found.spatial, MU_S, SIGMA_S)
    assert found.stats.count == 60
    assert (found.images, found.network, found.origin) == (IMAGES, NETWORK, "genflow")
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]
    assert load_reference(path, "pixels").network == NETWORK, "what was asked for is compared by who asks"
    save_reference(path, stats=stats, images=replace(IMAGES, codec=None), network=replace(NETWORK, dtype=None))
    found = load_reference(path)
    assert found.spatial is None
    assert unknown(found.images) == ["codec"]


def test_other_tools_read_it(tmp_path):
    """As pytorch-fid and clean-fid do, and ADM's evaluator."""
    path = tmp_path / "x.npz"
    stats, spatial = FeatureStats.of(torch.from_numpy(ROWS)), FeatureStats.of(torch.from_numpy(SPATIAL))
    save_reference(path, stats=stats, spatial=spatial, images=IMAGES, network=NETWORK)
    with np.load(path) as file:  # of which pickles are refused
        assert set(file.files) == {"mu", "sigma", "mu_s", "sigma_s", "n", "protocol"}
        np.testing.assert_allclose(file["mu"], MU, rtol=1e-14)
        np.testing.assert_allclose(file["sigma"], SIGMA, rtol=1e-12)
        assert {file[name].dtype for name in ("mu", "sigma", "mu_s", "sigma_s")} == {np.dtype(np.float64)}
        assert json.loads(str(file["protocol"]))["network"]["name"] == "inception"


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    stats = FeatureStats.of(torch.from_numpy(ROWS))
    save_reference(path, stats=stats, images=IMAGES, network=NETWORK)

    def stop(file, **_arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        save_reference(path, stats=stats, images=replace(IMAGES, name="new"), network=NETWORK)
    assert load_reference(path).images == IMAGES
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_unknown_numbers_and_too_few(tmp_path):
    path = tmp_path / "x.npz"
    bare = FeatureStats.from_moments(torch.from_numpy(MU), torch.from_numpy(SIGMA), None)
    save_reference(path, stats=bare, images=replace(IMAGES, n=None), network=NETWORK)
    assert load_reference(path).stats.count is None
    with pytest.raises(ValueError, match="at least 2"):
        save_reference(path, stats=FeatureStats.of(torch.zeros(1, 5)), images=IMAGES, network=NETWORK)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_reference(tmp_path / "x.pkl", stats=bare, images=IMAGES, network=NETWORK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its protocol is damaged: make the file anew"),
        ("[]", "not of format 1"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1}', "its protocol is damaged"),
        ('{"format": 1, "images": {"name": 3}, "network": {}}', "its protocol is damaged"),
        ("[" * 100_000, "its protocol is damaged"),
    ],
)
def test_protocols_that_are_none(tmp_path, text: str, message: str):
    path = tmp_path / "x.npz"
    np.savez(path, mu=MU, sigma=SIGMA, n=60, protocol=np.array(text))
    with pytest.raises(ValueError, match=message):
        load_reference(path)


# Those of others


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_edm(tmp_path, dtype):
    path = tmp_path / "cifar10-32x32.npz"
    np.savez(path, mu=MU.astype(dtype), sigma=SIGMA.astype(dtype))
    found = load_reference(path)
    assert same(found.stats, MU.astype(dtype), SIGMA.astype(dtype))
    assert (found.stats.count, found.spatial, found.network, found.origin) == (None, None, None, "EDM")
    assert nothing_known(found.images, path)


def test_clean_fid_and_pytorch_fid(tmp_path):
    path = tmp_path / "ffhq.npz"
    np.savez_compressed(path, mu=MU, sigma=SIGMA)
    found = load_reference(path)
    assert same(found.stats)
    assert found.origin == "clean-fid or pytorch-fid"
    assert nothing_known(found.images, path)
    np.savez_compressed(path, feats=ROWS)
    assert is_reference(path)
    with pytest.raises(ValueError, match=r"features of single images .* not their statistics: give the images"):
        load_reference(path)


def test_adm(tmp_path):
    """Its statistics are of all of ImageNet, its images some of it: how many there were is not told."""
    path = tmp_path / "VIRTUAL_imagenet64_labeled.npz"
    images = RNG.integers(0, 256, (10, 6, 4, 3), dtype=np.uint8)
    np.savez(path, arr_0=images, arr_1=np.arange(10), mu=MU, sigma=SIGMA, mu_s=MU_S, sigma_s=SIGMA_S)
    found = load_reference(path)
    assert same(found.stats)
    assert same(found.spatial, MU_S, SIGMA_S)
    assert (found.origin, found.network, found.images.shape) == ("ADM", None, (3, 6, 4))
    assert nothing_known(found.images, path, "shape", "quantisation")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_edm2(tmp_path, protocol: int):
    path = tmp_path / "img512.pkl"
    held = {"num_images": 1281167, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": {"mu": MU_S, "sigma": SIGMA_S}}
    path.write_bytes(pickle.dumps(held, protocol))
    found = load_reference(path)
    assert same(found.stats)
    assert found.network == NetworkIdentity(
        name="inception", weights=None, resize=None, quantisation=None, dtype=None, dims=5
    )
    assert (found.origin, found.stats.count, found.images.n) == ("EDM2", 1281167, 1281167)
    assert nothing_known(found.images, path, "n")
    found = load_reference(path, "dinov2-vit-l-14")
    assert same(found.stats, MU_S, SIGMA_S)
    assert found.network is not None
    assert (found.network.name, found.network.dims) == ("dinov2-vit-l-14", 3)
    with pytest.raises(ValueError, match="statistics of inception, dinov2-vit-l-14, none of pixels: name one of them"):
        load_reference(path, "pixels")
    del held["fid"]
    path.write_bytes(pickle.dumps(held, protocol))
    assert same(load_reference(path).stats, MU_S, SIGMA_S)


def test_a_pickle_of_one_network(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps({"mu": MU, "sigma": SIGMA}))
    found = load_reference(path)
    assert same(found.stats)
    assert (found.origin, found.network, found.stats.count) == ("EDM", None, None)
    assert nothing_known(found.images, path)


# What is refused


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU}, "holds mu, but no array named 'sigma'"),
        ({"sigma": SIGMA}, "holds sigma, but no array named 'mu'"),
        ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S}, "no array named 'sigma_s'"),
        ({"mu": MU[:4], "sigma": SIGMA}, r"mu \(4,\) and sigma \(5, 5\) do not fit"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu \(1, 5\) and sigma \(5, 5\) do not fit"),
        ({"mu": MU, "sigma": SIGMA.diagonal()}, "do not fit"),
        ({"mu": MU[:0], "sigma": SIGMA[:0, :0]}, "do not fit"),
        ({"mu": MU, "sigma": SIGMA, "mu_s": MU_S, "sigma_s": SIGMA}, r"mu_s \(3,\) and sigma_s \(5, 5\) do not fit"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "NaN or infinity"),
        ({"mu": MU, "sigma": SIGMA + np.inf}, "NaN or infinity"),
        ({"mu": MU, "sigma": np.triu(SIGMA)}, "not symmetric"),
        ({"mu": MU, "sigma": -SIGMA}, "negative variances"),
        ({"mu": MU, "sigma": SIGMA - 2 * np.diag([0, 0, SIGMA[2, 2], 0, 0])}, "negative variances"),
        ({"mu": MU.astype(complex), "sigma": SIGMA}, "must be floating point, got complex128"),
        ({"mu": MU, "sigma": SIGMA.astype(int)}, "must be floating point"),
        ({"mu": np.array([None] * 5, object), "sigma": SIGMA}, "must be floating point, got object"),
        ({"mu": MU, "sigma": SIGMA, "protocol": np.array(3)}, "protocol is not what genflow writes"),
        ({"mu": MU, "sigma": SIGMA, "protocol": np.array("{}"), "n": np.ones(2, int)}, "n is not what genflow"),
    ],
)
def test_arrays_that_are_no_moments(tmp_path, arrays, message: str):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    assert is_reference(path)
    with pytest.raises(ValueError, match=message) as caught:
        load_reference(path)
    assert "x.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({}, "holds nothing, but no statistics"),
        ({"num_images": 3}, "holds 'num_images', but no statistics"),
        ({"fid": {"mu": MU}}, "holds 'mu', but mu and sigma must be arrays"),
        ({"fid": {"mu": MU, "sigma": 3.0}}, "must be arrays"),
        ({"fid": {"mu": MU, "sigma": SIGMA[:4]}}, r"mu \(5,\) and sigma \(4, 5\) do not fit"),
        ({"fid": {"mu": MU, "sigma": SIGMA.astype(np.int64)}}, "sigma must be floating point"),
        ({"fid": {"mu": MU * np.nan, "sigma": SIGMA}}, "NaN or infinity"),
        ({"fid": {"mu": MU, "sigma": -SIGMA}}, "negative variances"),
        ({"fid": {"mu": MU, "sigma": SIGMA}, "num_images": 1}, "num_images is '1', which is no number of images"),
        ({"fid": {"mu": MU, "sigma": SIGMA}, "num_images": "x"}, "num_images is 'x'"),
        ({"fid": [1.0]}, "something else than arrays and numbers under 'fid'"),
    ],
)
def test_pickles_that_hold_no_moments(tmp_path, held, message: str):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(ValueError, match=message) as caught:
        load_reference(path)
    assert "x.pkl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_is_one_sentence(tmp_path, write):
    path = tmp_path / "x.npz"
    write(path, mu=MU, sigma=SIGMA)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npz is no \.npz file of statistics, or is damaged"):
            load_reference(path)
        assert not is_reference(path)
    for place in range(0, len(whole), 5):  # a checksum, a name or nothing that matters: never anything else
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            found = load_reference(path).stats
        except ValueError as error:
            found, told = None, str(error)
            assert (told.count("\n"), "x.npz" in told) == (0, True)
        assert found is None or same(found)


def test_large_arrays_in_small_files_are_refused_unread(tmp_path):
    """Ten gigabytes of zeros, of which only the beginning is packed."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("mu", (40000,)), ("sigma", (40000, 40000))):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with pytest.raises(ValueError, match="do not fit"):
        load_reference(path)


def test_references_are_told_from_images(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "samples.npz", np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "both.npz", images=np.zeros((2, 4, 4, 3), np.uint8), mu=MU, sigma=SIGMA)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "folder.npz").mkdir()
    for name in ("images.npz", "samples.npz", "both.npz", "broken.npz", "folder.npz", "absent.npz", "digits", "x.zip"):
        assert not is_reference(tmp_path / name)
    np.savez(tmp_path / "x.NPZ.npz", mu=MU, sigma=SIGMA)
    for name in ("x.NPZ.npz", "x.pkl", "x.PKL", "x.pickle"):
        assert is_reference(tmp_path / name)
    for name in ("absent.npz", "absent.pkl"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}"):
            load_reference(tmp_path / name)


def test_what_is_no_covariance_or_beyond_all_measure_is_refused(tmp_path):
    rows = np.random.default_rng(0).standard_normal((50, 6))
    mean, covariance = rows.mean(axis=0), np.cov(rows, rowvar=False)
    indefinite = covariance - 0.9 * np.diag(covariance.diagonal())
    for name, arrays, said in (
        ("indefinite", {"mu": mean, "sigma": indefinite}, "negative variances"),
        ("wide", {"mu": mean, "sigma": 1e200 * covariance}, "scale the features"),
        ("far", {"mu": 1e200 + mean, "sigma": covariance}, "scale the features"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=rf"{name}\.npz: .*{said}"):
            load_reference(path)
    few = rows[:4].astype(np.float32)  # singular, and rounded
    np.savez(tmp_path / "few.npz", mu=few.mean(axis=0), sigma=np.cov(few, rowvar=False).astype(np.float32))
    assert load_reference(tmp_path / "few.npz").stats.dims == 6
