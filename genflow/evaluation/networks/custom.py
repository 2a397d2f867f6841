"""A function of the user's own as a feature network."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor

from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.numerics import full_precision
from genflow.evaluation.networks.weights import first_line
from genflow.evaluation.protocol import NetworkIdentity


@final
class CustomFeatures(FeatureNetwork):
    """Any importable callable from images (B, C, H, W) uint8 to vectors (B, D) of floating-point numbers.

    The current folder is searched first, as by ``python -m``, and stays on the path for what the module imports later.
    The function gets a copy of the images on ``device``, and runs without gradients, autocast and TF32. D is found by
    showing it one made-up image.

    Its identity is the sha256 of the source file that defines the function, or of the module's own if it is an object
    that can be called. So an edit makes it another network, but weights that it reads from elsewhere are not seen; nor
    is an edit after the module was imported: start a new process.

    Args:
        name: ``module:function``; the function may be an attribute of an attribute, ``module:Class.method``.
        image_shape: channels, height and width of the images to come.
        device: where to compute.

    Raises:
        RuntimeError: the function cannot be imported; its module is not the one of that name that was imported before;
            it has no source file, fails, or does not give one vector of finite numbers an image.
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int], *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._name = name
        self._function, source = _import(name)
        ramp = torch.arange(math.prod(image_shape)) % 256  # black ones may be divided by their deviation
        dims = self._vectors(ramp.to(torch.uint8).reshape(1, *image_shape)).shape[1]
        self.identity = NetworkIdentity(
            name=name, weights=sha256(source), resize=None, quantisation="uint8", dtype="float32", dims=dims
        )

    def outputs(self, images: Tensor) -> Outputs:
        vectors = self._vectors(images)
        if vectors.shape[1] != self.dims:
            raise ValueError(
                f"{self.name} gave vectors of length {vectors.shape[1]} for images {tuple(images.shape)}, but"
                f" {self.dims} for the first: the length must not depend on the images"
            )
        return Outputs(vectors)

    def _vectors(self, images: Tensor) -> Tensor:
        given = f"images {images.dtype} {tuple(images.shape)}"
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"{self._name} is shown uint8 images (B, C, H, W), got {given}")
        with full_precision(self.device):
            try:
                found = self._function(images.to(self.device, copy=True))
            except (Exception, SystemExit) as error:
                raise RuntimeError(f"{self._name} failed on {given}: {_said(error)}") from error
        wanted = (
            isinstance(found, Tensor)
            and found.is_floating_point()
            and found.ndim == 2
            and len(found) == len(images)
            and found.shape[1] > 0
        )
        if not wanted:
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise RuntimeError(
                f"{self._name} must return floating-point vectors ({len(images)}, D) for {given}, got {got}"
            )
        vectors = found.detach().to(self.device, torch.float32)
        strange = (~vectors.isfinite()).any(dim=1).sum().item()
        if strange:
            raise RuntimeError(
                f"{self._name} gave NaN or infinite features for {strange} of {given}: they must be finite in float32"
            )
        return vectors


def _import(name: str) -> tuple[Callable[[Tensor], Any], Path]:
    """Return the callable of ``module:function`` and the file that defines it."""
    where, _, what = name.partition(":")
    if not where or not what or where.endswith(".py") or "/" in where:
        raise RuntimeError(f"{name!r} is not of the form module:function, such as my_features:embed")
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be as new as this call
    _refuse_another(name, where.partition(".")[0])
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise RuntimeError(
            f"{name} cannot be imported, from {here} or the installed packages: {_said(error)}"
        ) from error
    try:
        function = attrgetter(what)(module)
    except AttributeError as error:
        raise RuntimeError(f"{name} cannot be imported: {_said(error)}") from error
    if callable(function):
        return function, _source(name, function, module)
    raise RuntimeError(f"{name} must be a function of images, got {type(function).__name__}")


def _refuse_another(name: str, package: str) -> None:
    """Raise if a module of the name was imported before, and is not the one that an import would find now."""
    if package not in sys.modules:
        return
    spec = PathFinder.find_spec(package)
    loaded = getattr(sys.modules[package], "__file__", None)
    if spec is None or spec.origin is None or (loaded and Path(spec.origin).resolve() == Path(loaded).resolve()):
        return
    raise RuntimeError(
        f"{name}: another module {package} was imported before, from {loaded}, so {spec.origin} cannot be:"
        f" give it another name, which no package has"
    )


def _source(name: str, function: Callable[[Tensor], Any], module: ModuleType) -> Path:
    """Return the file that defines a function, or the module of any other object, which only it tells from others."""
    inner = inspect.unwrap(function)
    try:
        file = inspect.getsourcefile(inner if inspect.isfunction(inner) else module)
    except TypeError:  # built into Python
        file = None
    if file is None or not Path(file).is_file():
        raise RuntimeError(f"{name} has no source file to know it by: wrap it in a function in a .py file")
    return Path(file)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
