"""Files of statistics that stand for reference images: ours, and those of EDM, EDM2, ADM, clean-fid and pytorch-fid."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genflow import __version__
from genflow.data.npz import DAMAGED_NPZ
from genflow.evaluation.plain_pickle import Plain, read_plain_pickle
from genflow.evaluation.protocol import ImageSet, NetworkIdentity
from genflow.evaluation.statistics import FeatureStats
from genflow.files import atomic_file

FORMAT = 1  # of our files; raise it when a reader of older ones would misread
EDM2_METRICS = {"fid": "inception", "fd_dinov2": "dinov2-vit-l-14"}
"""What EDM2 calls statistics, and the features that they are of."""
_PICKLES = (".pkl", ".pickle")
_DIMS = 2**14  # of features, at most: their covariance has 2 GiB
_Header = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Statistics of images that are not there any more, with all that their file tells of them."""

    stats: FeatureStats
    """Mean and covariance of the features (D,), and how many images they are of, if that is known."""
    spatial: FeatureStats | None
    """Those of Inception's spatial features (2023,), for sFID."""
    images: ImageSet
    """What is known of the images. The hash is that of the images in our files, in others the sha256 of the file."""
    network: NetworkIdentity | None
    """Whose features they are; None if the file does not say: then their number is all that can be compared."""
    origin: str
    """Whose kind of file it is: "genflow", "EDM", "EDM2", "ADM", "clean-fid or pytorch-fid"."""


def is_reference(path: Path) -> bool:
    """Tell whether a path is a file of statistics rather than images: a pickle, or a ``.npz`` that holds them.

    A ``.npz`` holds ``mu`` or ``sigma``, or the ``feats`` of clean-fid, which ``load_reference`` then refuses.
    """
    if path.suffix.lower() in _PICKLES:
        return True
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGED_NPZ:
        return False  # whoever reads it as images says that it is damaged
    return bool(names & {"mu", "sigma", "feats"}) and "images" not in names


def load_reference(path: Path, features: str = "auto") -> Reference:
    """Read a file of statistics.

    ``.npz``: ``mu`` (D,) and ``sigma`` (D, D), perhaps ``mu_s`` and ``sigma_s`` of Inception's spatial features (ADM,
    arXiv 2105.05233), perhaps the protocol that ``save_reference`` wrote. Pickle: EDM2's (arXiv 2312.02696), a dict
    of metrics, each a dict of ``mu`` and ``sigma``, and ``num_images``; or one such dict. No code in it is run.

    Args:
        path: the file.
        features: the network whose statistics are taken where a file holds several; "auto" takes Inception's, if it
            holds them, else the first. A file of one network is read whatever is asked for.

    Raises:
        ValueError: the file is not there, damaged or no such file; its arrays do not fit each other, hold NaN or are
            no moments; it holds no statistics of ``features``.
    """
    try:
        if path.suffix.lower() in _PICKLES:
            return _from_pickle(path, features)
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return _from_npz(path, digest)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def save_reference(
    path: Path,
    *,
    stats: FeatureStats,
    spatial: FeatureStats | None = None,
    images: ImageSet,
    network: NetworkIdentity,
) -> None:
    """Write statistics with their protocol to a ``.npz`` file, whole or not at all.

    ``mu`` and ``sigma`` lie under the names that pytorch-fid and clean-fid read, ``mu_s`` and ``sigma_s`` under ADM's,
    all float64; ``n`` is the number of images, 0 if unknown; ``protocol`` is JSON.

    Raises:
        ValueError: the name does not end in .npz, or there are fewer than two features.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path} must end in .npz: other tools know files of statistics by that")
    protocol = {"genflow": __version__, "format": FORMAT, "images": asdict(images), "network": asdict(network)}
    arrays: dict[str, Any] = {"mu": stats.mean.numpy(), "sigma": stats.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    arrays |= {"n": np.int64(stats.count or 0), "protocol": np.array(json.dumps(protocol, sort_keys=True))}
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _from_npz(path: Path, digest: str) -> Reference:
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {info.filename.removesuffix(".npy"): _header(archive, info) for info in archive.infolist()}
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        _check(path, headers)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            wanted = ("mu", "sigma", "mu_s", "sigma_s", "n", "protocol")
            arrays = {name: file[name] for name in wanted if name in headers}
    except _Unfit:
        raise
    except DAMAGED_NPZ as error:
        told = " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is no .npz file of statistics, or is damaged ({told})") from None
    protocol = _protocol(path, arrays.get("protocol"))
    count = int(arrays["n"]) if protocol is not None and "n" in arrays else 0
    stats = _moments(path, arrays["mu"], arrays["sigma"], count or None)
    spatial = _moments(path, arrays["mu_s"], arrays["sigma_s"], count or None) if "mu_s" in headers else None
    if protocol is not None:
        images, network = protocol
        return Reference(stats=stats, spatial=spatial, images=images, network=network, origin="genflow")
    # numpy's two ways to write tell EDM's files from those of the other two
    origin = "ADM" if spatial is not None else "clean-fid or pytorch-fid" if packed else "EDM"
    images = _unknown(path, digest)
    if "arr_0" in headers and len(headers["arr_0"][0]) == 4:  # some of the images, for ADM's precision and recall
        (_, height, width, channels), dtype = headers["arr_0"]
        images = replace(images, shape=(channels, height, width))
        images = replace(images, quantisation="uint8") if dtype == np.uint8 else images
    return Reference(stats=stats, spatial=spatial, images=images, network=None, origin=origin)


class _Unfit(ValueError):
    """A file that is sound, but not of statistics."""


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header:
    """Return shape and dtype of an array that is not read: a small file may hold a large one."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    return shape, dtype


def _check(path: Path, headers: Mapping[str, _Header]) -> None:
    """Refuse arrays that are no moments by their shapes, before they are read."""
    if "mu" not in headers and "feats" in headers:
        raise _Unfit(
            f"{path} holds features of single images ('feats', which clean-fid keeps for KID), not their statistics:"
            " give the images, or the file with mu and sigma that lies beside it"
        )
    pairs = [("mu", "sigma")] + [("mu_s", "sigma_s")] * bool({"mu_s", "sigma_s"} & headers.keys())
    for names in pairs:
        missing = [name for name in names if name not in headers]
        if missing:
            raise _Unfit(f"{path} holds {', '.join(headers) or 'nothing'}, but no array named {missing[0]!r}")
        (mean, mean_type), (covariance, covariance_type) = (headers[name] for name in names)
        _check_shapes(path, names, mean, covariance)
        if mean_type.kind != "f" or covariance_type.kind != "f":
            raise _Unfit(
                f"{path}: {names[0]} and {names[1]} must be floating point, got {mean_type}, {covariance_type}"
            )
    for name, kinds in (("n", "iu"), ("protocol", "U")):
        if "protocol" in headers and name in headers and (headers[name][0] or headers[name][1].kind not in kinds):
            raise _Unfit(f"{path}: {name} is not what genflow writes: make the file anew with  genflow stats")


def _check_shapes(path: Path, names: tuple[str, str], mean: tuple[int, ...], covariance: tuple[int, ...]) -> None:
    if len(mean) != 1 or not 0 < mean[0] <= _DIMS or covariance != (*mean, *mean):
        raise _Unfit(f"{path}: {names[0]} {mean} and {names[1]} {covariance} do not fit: they are (D,) and (D, D)")


def _moments(path: Path, mean: npt.NDArray[Any], covariance: npt.NDArray[Any], count: int | None) -> FeatureStats:
    found = [torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance)]
    try:
        stats = FeatureStats.from_moments(found[0], found[1], count)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    values = torch.linalg.eigvalsh(stats.covariance)
    if values[0] < -1e-4 * values[-1].abs():  # sums in single precision leave less
        raise ValueError(f"{path}: the covariance has negative variances ({float(values[0]):.3g}), so it is none")
    return stats


def _protocol(path: Path, text: npt.NDArray[Any] | None) -> tuple[ImageSet, NetworkIdentity] | None:
    """Return what ``save_reference`` wrote beside the arrays, if it wrote the file."""
    if text is None:
        return None
    from pydantic import TypeAdapter, ValidationError

    anew = "make the file anew with  genflow stats"
    try:
        record = json.loads(str(text))
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            raise ValueError(f"{path}: its protocol is not of format {FORMAT}: {anew}")
        return (
            TypeAdapter(ImageSet).validate_python(record["images"]),
            TypeAdapter(NetworkIdentity).validate_python(record["network"]),
        )
    except (json.JSONDecodeError, KeyError, ValidationError, RecursionError):
        raise ValueError(f"{path}: its protocol is damaged: {anew}") from None


def _from_pickle(path: Path, features: str) -> Reference:
    held = read_plain_pickle(path)
    with path.open("rb") as opened:
        images = _unknown(path, hashlib.file_digest(opened, "sha256").hexdigest())
    if "mu" in held:
        stats = _pickled_moments(path, held, None)
        return Reference(stats=stats, spatial=None, images=images, network=None, origin="EDM")
    metrics: dict[str, Mapping[str, Plain]] = {name: value for name, value in held.items() if isinstance(value, dict)}
    if not metrics:
        raise ValueError(f"{path} holds {', '.join(map(repr, held)) or 'nothing'}, but no statistics (mu and sigma)")
    names = {EDM2_METRICS.get(name, name): name for name in metrics}
    name = features
    if features == "auto":
        name = "inception" if "inception" in names else next(iter(names))
    if name not in names:
        raise ValueError(
            f"{path} holds statistics of {', '.join(names)}, none of {features}: name one of them by --features"
        )
    count = held.get("num_images")
    if count is not None and (type(count) is not int or count < 2):
        raise ValueError(f"{path}: num_images is {str(count)[:40]!r}, which is no number of images")
    stats = _pickled_moments(path, metrics[names[name]], count)
    network = NetworkIdentity(
        name=name, weights=None, resize=None, quantisation=None, dtype=None, dims=stats.dims
    )  # the file tells whose features, and nothing of how they were computed
    return Reference(stats=stats, spatial=None, images=replace(images, n=count), network=network, origin="EDM2")


def _pickled_moments(path: Path, held: Mapping[str, Plain], count: int | None) -> FeatureStats:
    mean, covariance = held.get("mu"), held.get("sigma")
    if not (isinstance(mean, np.ndarray) and isinstance(covariance, np.ndarray) and mean.dtype.kind == "f"):
        raise ValueError(f"{path} holds {', '.join(map(repr, held))}, but mu and sigma must be arrays of floats")
    if covariance.dtype.kind != "f":
        raise ValueError(f"{path}: sigma must be floating point, got {covariance.dtype}")
    _check_shapes(path, ("mu", "sigma"), mean.shape, covariance.shape)
    return _moments(path, mean, covariance, count)


def _unknown(path: Path, digest: str) -> ImageSet:
    return ImageSet(
        name=path.name,
        n=None,
        hash=digest,
        split=None,
        shape=None,
        codec=None,
        resize=None,
        colour=None,
        quantisation=None,
    )
