"""Consistency models: the clean image seen from one noise level must be the one seen from the level below."""

from __future__ import annotations

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch, Objective, drop_labels
from genflow.objectives.descents import ByImage, ByTeacher, Descent
from genflow.objectives.levels import Levels
from genflow.objectives.metrics import Metric
from genflow.objectives.targets import CurrentWeights, Target
from genflow.objectives.weightings import Weighting


class Consistency(Objective):
    """``weighting(t, s) metric(f(x_t, t), sg f'(x_s, s))``: CT, CD, iCT and ECT by their parts.

    f is ``denoiser.denoise``; ``(t, s)`` are neighbours of ``levels``; x_s lies below ``x_t = x + t noise`` on the way
    to the same image, by ``descent``; f' is the network of ``target``. Student and teacher see the same image, noise,
    label, labels of augmentation and dropout mask: the two outputs differ by little, and anything else that differed
    would drown it. The teacher comes first, without gradients or activations kept, and leaves the generators of
    random numbers, of the CPU and of the device, where it found them.

    | | levels | metric | weighting | target | descent |
    |---|---|---|---|---|---|
    | CT | square-root growth, uniform | LPIPS, L1 or squared L2 | 1 | average | image |
    | CD | constant, uniform | LPIPS, L1 or squared L2 | 1 | average or current | teacher |
    | iCT | doubling, log-normal | vector pseudo-Huber | 1 / (t - s) | current | image |
    | ECT | continuous, from an EDM's weights | norm | 1 / (t - s) | current | image |

    ``label_dropout`` in [0, 1) is the share of labels replaced by "no class".
    Sources: "Consistency Models", arXiv 2303.01469, eq. 7 and 10; "Improved Techniques for Training Consistency
    Models", arXiv 2310.14189; "Consistency Models Made Easy", arXiv 2406.14548.

    Raises ``ValueError`` for a label dropout outside [0, 1), levels that do not fit the model (``Levels.check``), and
    a teacher that is the model itself.
    """

    exact = True

    def __init__(
        self,
        denoiser: Denoiser,
        levels: Levels,
        *,
        metric: Metric,
        weighting: Weighting,
        target: Target | None = None,
        descent: Descent | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if isinstance(descent, ByTeacher) and descent.teacher is denoiser:
            raise ValueError(
                "the teacher is the model itself, which is frozen now: give it a copy, copy.deepcopy(model)"
            )
        levels.check(denoiser)
        self.denoiser = denoiser
        self.levels = levels
        self.metric = metric
        self.weighting = weighting
        self.target = target or CurrentWeights()
        self.descent = descent or ByImage()
        self.label_dropout = label_dropout

    def forward(self, batch: Batch, step: int) -> Tensor:
        schedule = self.denoiser.schedule
        t, s = self.levels.pairs(batch.u, step)
        y = drop_labels(batch.y, self.label_dropout, self.denoiser.num_classes)
        x_t = schedule.interpolate(batch.x, batch.noise, t)
        goal = self.goal(batch, x_t, t, s, y)
        clean = self.denoiser.denoise(x_t, t, y, augment=batch.augment)
        distance = self.metric(clean - goal, clean, goal, t)
        return self.weighting(self.denoiser, t, s).to(distance.dtype) * distance

    @torch.no_grad()
    def goal(self, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """Return what the teacher sees from below (B, C, H, W), with the student's dropout masks to come."""
        x_s = self.descent(self.denoiser.schedule, batch, x_t, t, s, y)
        device = x_t.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            goal = self.target.network(self.denoiser).denoise(x_s, s, y, augment=batch.augment)
        torch.clear_autocast_cache()  # older torch keeps weights that it rounded without gradients
        return goal

    def pace(self, step: int) -> dict[str, int]:
        return self.levels.pace(step)

    def after_step(self, step: int) -> None:
        self.target.follow(self.denoiser, step)
