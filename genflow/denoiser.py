"""The artefact people train, save, share and sample: a network together with what its output means."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from genflow.denoiser_parts import (
    build_backbone,
    build_parameterization,
    build_schedule,
    describe,
    describe_backbone,
)
from genflow.files import write_text
from genflow.kind.model import Gated
from genflow.nn.calling import called
from genflow.parameterizations import ConsistencyKarras, Parameterization
from genflow.schedules import Schedule, expand

SUBFOLDER = "denoiser"  # where a pipeline folder keeps it


class Denoiser(ModelMixin, ConfigMixin):
    """A backbone with its schedule and parameterization: from a noisy image to the clean one.

    ``denoise(x_t, t, y) = c_skip x_t + c_out backbone(c_in x_t, c_noise, y)``. ``backbone`` is any module called as
    ``(x, c_noise, y, s)`` on ``x`` (B, C, H, W), ``c_noise`` (B,) float32, labels ``y`` (B,) int64 or None, and the
    target time ``s`` (B,) or None; where ``augment`` (B, K) is given, which only training does, as ``augment=`` too. A
    plain ``nn.Sequential`` is given ``x`` alone.
    ``num_classes`` itself is the label "no class", and so is ``y = None``.

    The configuration holds the image shape (C, H, W), the number of classes, and how to sample by default: the
    sampler, its number of steps, and, for numbers of steps that have one, a time grid of their own
    (``times = {"2": [80.0, 0.821, 0.0]}``). ``teacher`` is the ``weights_hash`` of the model that made the pairs it was
    trained on; "" if there were none. Saved as a diffusers folder: config.json and safetensors.
    Source of the form: "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, eq. 7.

    Raises ``ValueError`` for a time grid that does not run from a positive time down to 0, and for a backbone that
    holds a ``Denoiser``.
    """

    config_name = "config.json"
    # frequencies of Fourier features, which no dtype asked of from_pretrained may round
    _keep_in_fp32_modules: ClassVar[list[str]] = ["frequencies"]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        sampler: str = "heun",
        steps: int = 18,
        times: dict[str, list[float]] | None = None,
        teacher: str = "",
    ) -> None:
        super().__init__()
        if any(isinstance(part, Denoiser) for part in backbone.modules()):
            raise ValueError(
                f"this {type(backbone).__name__} is or holds a Denoiser, and what a Denoiser takes is a network: give"
                " the .backbone of the one inside, or what genflow.kind makes of that"
            )
        if isinstance(backbone, Gated) and backbone.gate.num_classes != num_classes:
            raise ValueError(
                f"this backbone has tailors or updates for {backbone.gate.num_classes} classes, and num_classes is"
                f" {num_classes}: give the number of the backbone, or use the .around(...) of another model"
            )
        self.backbone = backbone
        self.schedule = schedule
        self.parameterization = parameterization
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.sampler = sampler
        self.steps = steps
        self.times = times or {}
        self.teacher = teacher
        for count, grid in self.times.items():
            _check_grid(int(count), grid)
        self.register_to_config(
            network=describe_backbone(backbone),  # not "backbone": diffusers would find the config before the module
            schedule=describe(schedule),
            parameterization=describe(parameterization),
            image_shape=list(image_shape),
            num_classes=num_classes,
            sampler=sampler,
            steps=steps,
            times=self.times,
            teacher=teacher,
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Return the raw output (B, C, H, W), float32, for states ``x_t`` at times ``t``, 0-dimensional or (B,).

        ``augment`` (B, K) are the labels of augmented images, for backbones that are told of them. This is the
        precision boundary: the backbone may hold or compute in bf16, what comes out is float32.
        Raises ``ValueError`` for labels given to a network without classes.
        """
        row = self.parameterization.coefficients(self.schedule, t)
        batch = (x_t.shape[0],)
        c_noise = _spread(row.c_noise, x_t)
        s = None if s is None else _spread(s, x_t)
        if y is not None and self.num_classes == 0:
            raise ValueError("this model has no classes: leave the labels out")
        if y is None and self.num_classes:
            y = torch.full(batch, self.num_classes, device=x_t.device)
        x_in = (expand(row.c_in, x_t) * x_t).to(_weight_dtype(self.backbone))
        return called(self.backbone, x_in, c_noise, y, s, augment).float()

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Return the clean image (B, C, H, W) as seen from state ``x_t`` at time ``t``, 0-dimensional or (B,)."""
        return self.parameterization.clean(self.schedule, self(x_t, t, y, s, augment), x_t, t)

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that can be asked for, rising: of a decomposed network those of the classes that it has kept."""
        match self.backbone:
            case Gated(gate=gate):
                return gate.kept
            case _:
                return tuple(range(self.num_classes))

    def around(self, backbone: nn.Module) -> Denoiser:
        """Return this model around another backbone: of one with a gate, with its number of classes."""
        match backbone:
            case Gated(gate=gate):
                num_classes = gate.num_classes
            case _:
                num_classes = self.num_classes
        return _assembled({**self.config, "num_classes": num_classes}, backbone)

    @classmethod
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, config: dict[str, Any], *, backbone: nn.Module | None = None, **overrides: Any
    ) -> Denoiser:
        """Rebuild from the content of config.json, with fresh weights; ``backbone`` as in ``from_pretrained``.

        Raises ``ValueError`` for a part that genflow does not know.
        """
        config = {**config, **overrides}
        return _assembled(config, build_backbone(config["network"], backbone))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder_or_repo: str | Path, backbone: nn.Module | None = None, **options: Any
    ) -> Denoiser:
        """Load a saved folder, a pipeline folder that holds one, or a hub repository; strictly.

        ``backbone`` stands in for a network that is not genflow's: the dense one, which is decomposed again if the
        saved one was. ``options`` are those of diffusers' ``ModelMixin.from_pretrained`` (``dtype``, ``revision``,
        ``cache_dir``, …). Only safetensors are read.
        Raises ``ValueError`` if there is no such folder, or if weights are missing, unexpected or of another shape.
        """
        options.setdefault("subfolder", _subfolder(folder_or_repo))
        _check_place(folder_or_repo, options["subfolder"])
        if backbone is not None:
            options["backbone"] = backbone
        verbosity = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity(logging.CRITICAL)  # what it would warn of is an error here, in one line
        try:
            options |= {"output_loading_info": True, "use_safetensors": True}
            loaded: Any = super().from_pretrained(str(folder_or_repo), **options)
            model, info = loaded
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot load a model from {folder_or_repo}: {type(error).__name__} {_first_line(error)}"
            ) from error
        finally:
            diffusers_logging.set_verbosity(verbosity)
        problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if problems:
            raise ValueError(f"the weights in {folder_or_repo} are of another model: {_shorten(problems)}")
        model.register_to_config(_name_or_path="")  # or a copy that is shared would tell where this one lay
        return model


def is_saved(folder: str | Path) -> bool:
    """Tell whether a folder holds a saved model rather than images."""
    return any((Path(folder) / name).is_file() for name in ("model_index.json", Denoiser.config_name))


def saved_in(path: str) -> str:
    """Return where a model is saved: the path itself, or the folder of the model in that of a run."""
    inner = Path(path) / "model"
    return str(inner) if is_saved(inner) else path


# Saved folders name the class as genflow.Denoiser, so that they survive any rearrangement of the files.
Denoiser.__module__ = "genflow"


def is_consistency(denoiser: Denoiser) -> bool:
    """Tell whether a model maps a state to where its path ends, not to the mean of the images that it may be of.

    ECT's models are preconditioned as diffusion models are, and known by their sampler.
    """
    return isinstance(denoiser.parameterization, ConsistencyKarras) or denoiser.sampler == "multistep"


def weights_hash(denoiser: nn.Module) -> str:
    """Return the sha256 of all weights, in the order of their names: which model it is, whatever file it came from."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder_or_repo: str | Path) -> dict[str, Any]:
    """Return what ``Denoiser.from_pretrained`` would rebuild a model from, the content of config.json, without weights.

    Raises ``ValueError`` if there is no such folder or repository.
    """
    subfolder = _subfolder(folder_or_repo)
    _check_place(folder_or_repo, subfolder)
    try:
        told: Any = Denoiser.load_config(str(folder_or_repo), subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the config.json of {folder_or_repo}: {_first_line(error)}") from error
    return told


def config_file(folder: Path) -> Path:
    """Return the config.json of a saved folder, or of a pipeline folder that holds one.

    Raises ``ValueError`` where there is none, or somebody else's.
    """
    inner = folder / SUBFOLDER if (folder / "model_index.json").is_file() else folder
    _check_folder(inner)
    return inner / Denoiser.config_name


def store_times(file: Path, times: dict[int, list[float]]) -> None:
    """Have a saved model sample on these time grids, by number of steps, from now on; those of other numbers stay.

    ``file`` is its config.json, which is replaced as a whole.
    Raises ``ValueError`` for grids that do not run from a positive time down to 0.
    """
    for count, grid in times.items():
        _check_grid(count, grid)
    config = json.loads(file.read_text(encoding="utf-8"))
    config["times"] |= {str(count): grid for count, grid in times.items()}
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")  # as diffusers writes it


def _assembled(config: Mapping[str, Any], backbone: nn.Module) -> Denoiser:
    """Return the model of a configuration around a backbone, whatever network the configuration names."""
    return Denoiser(
        backbone,
        build_schedule(config["schedule"]),
        build_parameterization(config["parameterization"]),
        image_shape=tuple(config["image_shape"]),
        num_classes=config["num_classes"],
        sampler=config["sampler"],
        steps=config["steps"],
        times=config["times"],
        teacher=config.get("teacher", ""),  # folders of before it was kept say nothing
    )


def _check_grid(count: int, grid: list[float]) -> None:
    falling = all(a > b for a, b in itertools.pairwise(grid))
    if len(grid) != count + 1 or not falling or grid[-1] != 0:
        raise ValueError(f"a grid of {count} steps is {count + 1} falling times that end at 0, got {grid}")


def _subfolder(folder_or_repo: str | Path) -> str | None:
    """Return where a model lies in a pipeline folder, or in a repository, which is taken for one; None of its own."""
    folder = Path(folder_or_repo)
    return SUBFOLDER if (folder / "model_index.json").is_file() or not folder.exists() else None


def _check_place(folder_or_repo: str | Path, subfolder: str | None) -> None:
    """Refuse what is neither a saved model's folder nor can be a repository."""
    folder = Path(folder_or_repo)
    if folder.exists():
        _check_folder(folder / (subfolder or ""))
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(folder_or_repo)):
        raise ValueError(f"there is no folder {folder_or_repo}, and a hub repository is named owner/name")
    elif folder.parent.is_dir():  # as of runs: a slip, for which the hub would be asked several times
        raise ValueError(f"there is no folder {folder}, and no hub is asked where there is a folder {folder.parent}")


def _check_folder(folder: Path) -> None:
    """Say what a local folder lacks, before diffusers logs several lines about it."""
    config = folder / Denoiser.config_name
    if not config.is_file():
        raise ValueError(f"{folder} is not a saved model: it has neither config.json nor denoiser/config.json")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except ValueError as error:
        raise ValueError(f"{config} is damaged: {error}") from None
    if kind != "Denoiser":
        raise ValueError(f"{folder} is not a genflow model: its config.json is that of a {kind}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has a config.json but no weights: diffusion_pytorch_model.safetensors is missing")


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """Return times as (B,) float32 on the device of ``x``; a scalar of the host is filled in there, without a wait."""
    if value.ndim == 0 and value.device.type == "cpu":
        return torch.full(x.shape[:1], float(value), device=x.device)
    return value.to(torch.float32).expand(x.shape[0])


def _weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first parameter: cheaper by far than a walk over all of them, every step."""
    return next((p.dtype for p in module.parameters()), torch.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _shorten(problems: dict[str, list[str]], most: int = 5) -> str:
    """Name the first few keys of each kind."""
    return "; ".join(
        f"{kind.replace('_', ' ')}: {', '.join(keys[:most])}"
        + (f" and {len(keys) - most} more" if len(keys) > most else "")
        for kind, keys in problems.items()
    )
