"""Frozen networks that turn images into the vectors a Fréchet distance is measured on.

For the embedded digits these are small classifiers that come with the package (made by
``assets/train_features.py`` from the training splits alone); for anything else it is the Inception
network of the usual FID. A second set of small networks, of another architecture and seed, is for
perceptual losses, so that no model is trained against the network that judges it.
"""

import abc
import hashlib
import io
import json
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar, final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from genflow.assets import asset
from genflow.pixels import to_unit

DigitName = Literal["digits", "mnist5k"]
FEATURES = ("digits", "mnist5k", "inception")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"

_Network = TypeVar("_Network", bound=nn.Module)


class FeatureNetwork(abc.ABC):
    """A frozen function from images to vectors.

    ``name`` is what ``load_features`` was asked for; ``identity`` adds the sha256 of the weights
    file, so that statistics of different networks are never compared; ``dims`` is D.
    """

    name: str
    identity: str
    dims: int

    @abc.abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Vectors of a batch of images: (B, C, H, W) uint8 to (B, D) float32 on the own device.

        Raises:
            ValueError: the images are not uint8, or of a shape that the network does not take.
        """


class PlainNet(nn.Module):
    """The small network that judges: pairs of 3x3 convolutions, a 64-vector, ten classes.

    ``forward`` maps x (B, 1, H, W) in [-1, 1] to features (B, 64) and logits (B, 10). They were
    trained to tell the digit, to redraw the image and to tell how noisy and blurred it is: features
    of a mere classifier collapse to one point a class, and a Fréchet distance on them sees hardly
    more than class frequencies. They are multiplied by ``balance`` = c C^-1/4, with C their
    covariance on the training split and c such that their variance there is one on average: half
    way to whitening, so that the distance is not that of the few strongest directions alone.

    Args:
        size: height and width; 8 gives two stages, 28 three.
    """

    balance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        stages = [(1, 32), (32, 64)] if size <= 8 else [(1, 16), (16, 32), (32, 64)]
        layers: list[nn.Module] = []
        for given, made in stages:
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
            layers += [nn.Conv2d(made, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        last = size // 2 ** len(stages)
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(64 * last * last, 64)
        self.classify = nn.Linear(64, 10)
        self.register_buffer("balance", torch.eye(64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.embed(self.body(x).flatten(1))  # (B, 64)
        return vector @ self.balance, self.classify(vector)


class LossNetwork(nn.Module):
    """The small network for losses: strided convolutions and residual blocks, smooth throughout.

    ``maps`` gives the feature maps that a perceptual distance compares, differentiable in x;
    ``forward`` the logits (B, 10), used to train it. Both take x (B, 1, H, W) in [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, made, 3, stride, padding=1), _Residual(made))
            for given, made, stride in [(1, 16, 1), (16, 32, 2), (32, 56, 2)]
        )
        self.classify = nn.Linear(56, 10)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, 16, H, W), (B, 32, H/2, W/2) and (B, 56, H/4, W/4)."""
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.maps(x)[-1].mean(dim=(2, 3)))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@final
class DigitFeatures(FeatureNetwork):
    """The packaged classifier of ``digits`` (8x8) or ``mnist5k`` (28x28), D = 64.

    Args:
        name: which data set it was trained on.
        device: where to compute.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: DigitName, *, device: torch.device | str = "cpu") -> None:
        if name not in ("digits", "mnist5k"):
            raise ValueError(f"no packaged classifier for {name!r}: it is digits or mnist5k")
        path = asset(f"features/{name}.safetensors")
        self.name = name
        self.identity = f"{name}:{sha256(path)}"
        self.dims = 64
        self.metadata = read_metadata(path)
        self._device = torch.device(device)
        self._size = int(str(self.metadata["size"]))
        self._network = _frozen(PlainNet(self._size), path).to(self._device)

    def features(self, images: Tensor) -> Tensor:
        return self._both(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the ten digits: (B, 1, H, W) uint8 to (B, 10).

        Raises:
            ValueError: as ``features``.
        """
        return self._both(images)[1]

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        expected = (1, self._size, self._size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"the {self.name} network takes uint8 images (B, {expected[0]}, {expected[1]}, "
                f"{expected[2]}), got {images.dtype} {tuple(images.shape)}; for other images use "
                "the inception features"
            )
        with torch.no_grad(), _full_precision(self._device):
            return self._network(to_unit(images.to(self._device)))


@final
class InceptionFeatures(FeatureNetwork):
    """The pool-3 vector of TensorFlow's 2015 Inception-v3, D = 2048, by torch-fidelity's port.

    The features of "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium" (arXiv 1706.08500): images are resized to 299x299 bilinearly, without antialiasing,
    as TensorFlow 1 did. Grey images are repeated to three channels.

    Args:
        weights: a ``.pth`` (read without running pickled code) or ``.safetensors`` file. Default:
            torch-fidelity's file in torch's hub cache, downloaded on first use.
        device: where to compute.

    Raises:
        RuntimeError: torch-fidelity is missing; or the weights cannot be found, downloaded or used.
    """

    def __init__(self, weights: Path | None = None, *, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise RuntimeError("inception features need torch-fidelity: run  pip install torch-fidelity") from error
        path = _inception_weights(weights)
        # The extractor reads its weights by an unrestricted torch.load. So the file is read safely
        # here, and the extractor is given bytes that were written by this very process.
        trusted = io.BytesIO()
        torch.save(_safe_state(path), trusted)
        trusted.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], trusted)
        except (RuntimeError, TypeError) as error:
            raise RuntimeError(
                f"{path} does not hold the weights of torch-fidelity's Inception network "
                f"({INCEPTION_FILE}): {str(error).splitlines()[0]}"
            ) from error
        self.name = "inception"
        self.identity = f"inception:{sha256(path)}"
        self.dims = 2048
        self._device = torch.device(device)
        self._network = network.to(self._device)

    def features(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"the inception network takes uint8 images (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        rgb = images.to(self._device).expand(-1, 3, -1, -1)
        with torch.no_grad(), _full_precision(self._device):
            return self._network(rgb)[0]


def load_features(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network of a name.

    Args:
        name: ``digits``, ``mnist5k`` or ``inception``.
        weights: a file to use in place of the default one; for ``inception`` only.
        device: where to compute.

    Raises:
        ValueError: an unknown name, or ``weights`` with a packaged network.
        RuntimeError: weights are missing.
    """
    if weights is not None and name in ("digits", "mnist5k"):
        raise ValueError(f"--weights is for inception; the {name} features come with the package")
    match name:
        case "digits":
            return DigitFeatures("digits", device=device)
        case "mnist5k":
            return DigitFeatures("mnist5k", device=device)
        case "inception":
            return InceptionFeatures(weights, device=device)
        case _:
            raise ValueError(f"no features called {name!r}: allowed are {', '.join(FEATURES)}")


def load_loss_network(name: DigitName, device: torch.device | str = "cpu") -> LossNetwork:
    """The frozen network that a perceptual loss on ``digits`` or ``mnist5k`` may use.

    Args:
        name: which data set.
        device: where to compute.

    Raises:
        ValueError: another name.
    """
    if name not in ("digits", "mnist5k"):
        raise ValueError(f"no packaged loss network for {name!r}: it is digits or mnist5k")
    path = asset(f"features/{name}-loss.safetensors")
    return _frozen(LossNetwork(), path).to(device)


def read_metadata(path: Path) -> dict[str, object]:
    """How a packaged network was made: architecture, seed, steps, held-out accuracy, versions."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["genflow"])


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _frozen(network: _Network, path: Path) -> _Network:
    stored = load_file(path)  # float16
    network.load_state_dict({key: value.to(torch.float32) for key, value in stored.items()})
    return network.eval().requires_grad_(False)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast from outside, and no TF32, which costs three digits."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)


def _inception_weights(weights: Path | None) -> Path:
    if weights is not None:
        if not Path(weights).is_file():
            raise RuntimeError(f"--weights {weights} is not a file")
        return Path(weights)
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix="6726825d")
        except (urllib.error.URLError, OSError) as error:
            raise RuntimeError(
                f"the Inception weights {INCEPTION_FILE} cannot be downloaded ({error}): "
                f"get {URL_INCEPTION_V3} elsewhere and put it at {path}, or name it by --weights"
            ) from error
    return path


def _safe_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle of weights can raise anything in there
        # torch's own words advise to run whatever code the file holds
        raise RuntimeError(f"{path} is not a file of plain weights ({type(error).__name__})") from error
