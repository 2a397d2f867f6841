"""The Denoiser for people at home in diffusers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput

from genflow.denoiser import Denoiser
from genflow.sampling.generate import generate


class GenflowPipeline(DiffusionPipeline):
    """A diffusers pipeline around a ``Denoiser``: ``pipeline(batch_size=4, num_inference_steps=1).images``.

    Saved as model_index.json and denoiser/. The source of each image is a seed drawn from its generator, so that the
    images of a list of generators do not depend on how they are batched.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        class_labels: int | list[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return ``batch_size`` images: PIL; or arrays (N, H, W, C) or tensors (N, C, H, W), both in [0, 1].

        ``class_labels`` is one label for all or one per image; None means no class. Steps default to the model's own.
        Raises ``ValueError`` as ``genflow.generate`` does, and for a list of generators of another length.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"unknown output_type {output_type!r}: choose pil, np or pt")
        images = generate(
            self.denoiser,
            _seeds(generator, batch_size),
            labels=class_labels,
            steps=num_inference_steps,
            guidance=guidance_scale,
            batch_size=batch_size,
        )
        shown: Any = images.float() / 255
        if output_type != "pt":
            shown = shown.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            shown = self.numpy_to_pil(shown)
        return ImagePipelineOutput(images=shown) if return_dict else (shown,)


GenflowPipeline.__module__ = "genflow"  # what model_index.json names, wherever the file lies


def _seeds(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[int]:
    if not isinstance(generator, list):
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for a batch of {count}: give one, or one per image")
    return [int(torch.randint(2**63 - 1, (1,), generator=one, device=one.device)) for one in generator]
