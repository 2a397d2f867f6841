"""A function of the user's own as a feature network."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
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
    The function gets images on ``device``, and runs without gradients, autocast and TF32. D is found by showing it
    one black image. Its identity is the sha256 of the source file that defines it, so an edit makes it another network;
    weights that it reads from elsewhere are not seen.

    Args:
        name: ``module:function``; the function may be an attribute of an attribute, ``module:Class.method``.
        image_shape: channels, height and width of the images to come.
        device: where to compute.

    Raises:
        RuntimeError: the function cannot be imported, has no source file, fails, or does not give one vector an image.
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int], *, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._name = name
        self._function, source = _import(name)
        dims = self._vectors(torch.zeros(1, *image_shape, dtype=torch.uint8)).shape[1]
        self.identity = NetworkIdentity(
            name=name, weights=sha256(source), resize=None, quantisation="uint8", dtype="float32", dims=dims
        )

    def outputs(self, images: Tensor) -> Outputs:
        vectors = self._vectors(images)
        if vectors.shape[1] != self.dims:
            raise ValueError(
                f"{self.name} gave vectors of length {vectors.shape[1]} for images {tuple(images.shape)}, but {self.dims}"
                " for the first: the length must not depend on the images"
            )
        return Outputs(vectors)

    def _vectors(self, images: Tensor) -> Tensor:
        given = f"images {images.dtype} {tuple(images.shape)}"
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"{self._name} is shown uint8 images (B, C, H, W), got {given}")
        with full_precision(self.device):
            try:
                found = self._function(images.to(self.device))
            except Exception as error:
                raise RuntimeError(f"{self._name} failed on {given}: {_said(error)}") from error
        if not isinstance(found, Tensor):
            raise RuntimeError(f"{self._name} must return a tensor (B, D) of vectors, got {type(found).__name__}")
        if not found.is_floating_point() or found.ndim != 2 or len(found) != len(images) or found.shape[1] == 0:
            raise RuntimeError(
                f"{self._name} must return floating-point vectors ({len(images)}, D) for {given}, got {found.dtype}"
                f" {tuple(found.shape)}"
            )
        return found.detach().to(self.device, torch.float32)


def _import(name: str) -> tuple[Callable[[Tensor], Any], Path]:
    """Return the callable of ``module:function`` and the file that defines it."""
    where, _, what = name.partition(":")
    if not where or not what:
        raise RuntimeError(f"{name!r} is not of the form module:function, such as my_features:embed")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(where)
    except Exception as error:  # whatever the user's module does
        raise RuntimeError(
            f"{name} cannot be imported, from {here} or the installed packages: {_said(error)}"
        ) from error
    try:
        function = attrgetter(what)(module)
    except AttributeError as error:
        raise RuntimeError(f"{name} cannot be imported: {_said(error)}") from error
    if not callable(function):
        raise RuntimeError(f"{name} must be a function of images, got {type(function).__name__}")
    return function, _source(name, function, module)


def _source(name: str, function: Callable[[Tensor], Any], module: ModuleType) -> Path:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object that can be called has no source of its own
        file = inspect.getsourcefile(module)
    if file is None or not Path(file).is_file():
        raise RuntimeError(f"{name} has no source file to know it by: wrap it in a function in a .py file")
    return Path(file)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
