"""A picture of how models carry the same noise to images: bent before reflow, straight after it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.evaluation.pen import GREY, Pen, canvas, finished
from genflow.evaluation.straightness import measure
from genflow.evaluation.trajectories import Trajectories, trajectories
from genflow.pixels import quantize

PATHS = 16  # seeds to draw: lines that can still be told apart
COLUMNS = 9  # clean images along a path, at even times from 1 to 0
ROWS = 3  # seeds whose images are shown
ABREAST = 3  # models beside each other
TILE, GAP = 44, 4
LEFT, RIGHT, TOP, HEIGHT = 44, 10, 52, 230  # of a panel: room for numbers and titles, and how high it is
WIDTH = LEFT + COLUMNS * (TILE + GAP) + RIGHT
STRIPS = TOP + HEIGHT + 48  # where the images begin
CARD = STRIPS + 22 + ROWS * (TILE + GAP) + 14
FAINT = (205, 205, 210)
COLOURS = ((49, 54, 149), (33, 145, 140), (120, 94, 170), (214, 90, 90), (236, 160, 40))  # from low noise to high
CAPTION = (
    "Above: the paths of {seeds} seeds, the same for every model, along the direction in which they bend most; grey is"
    " the straight line from noise to image, which a straight flow stays on. Below: the clean images that each model"
    " predicts on the way of the first {rows}: what one step gives at t = 1, the result at t = 0. Figures are of these"
    " seeds in {steps} steps."
)


def draw(models: Mapping[str, Denoiser], seeds: Sequence[int], *, steps: int = 64) -> Tensor:
    """Return a picture, uint8 (3, H, W), of one card a model, by name, side by side, at most three in a row.

    Each card shows the paths of all seeds as lines of one value over time: the part of the state along the direction in
    which the paths of all models bend most, the same in all cards. Beneath are the clean images along the paths of
    three seeds. Times are those of the linear path, in ``steps`` steps of Euler's method.

    Raises ``ValueError`` for models of images that differ in shape or are not grey or RGB, and for paths that are not
    finite.
    """
    shapes = {model.image_shape for model in models.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] not in (1, 3):
        raise ValueError(
            f"only models of pictures of one shape, grey or RGB, can be drawn beside each other, and these make"
            f" {' and '.join(map(str, sorted(shapes)))}"
        )
    followed = {name: trajectories(model, seeds, steps=steps) for name, model in models.items()}
    for name, path in followed.items():
        if not path.states.isfinite().all():
            raise ValueError(f"the paths of {name} run to values that are not finite: there is nothing to draw")
    direction = _direction(list(followed.values()))
    lines = {name: (_along(path.states, direction), _along(path.clean, direction)) for name, path in followed.items()}
    values = np.concatenate([states.ravel() for states, _ in lines.values()])
    low, high = float(values.min()), float(values.max())
    margin = max(0.06 * (high - low), 0.05)  # some, where no line moves
    across = min(len(models), ABREAST)
    caption = textwrap.wrap(
        CAPTION.format(seeds=len(seeds), rows=min(ROWS, len(seeds)), steps=steps), width=across * 78 - 10
    )
    rows = math.ceil(len(models) / ABREAST)
    picture = canvas(across * WIDTH, rows * CARD + 20 * len(caption) + 10)
    for k, (name, path) in enumerate(followed.items()):
        card = _Card(Pen(picture, (k % ABREAST * WIDTH, k // ABREAST * CARD)))
        card.titles(name, path)
        card.panel(path.times.numpy(), lines[name][0], (low - margin, high + margin))
        card.strips(path)
    pen = Pen(picture, (0, rows * CARD))
    for k, line in enumerate(caption):
        pen.text(LEFT, 20 * k + 8, line, "lm", 13, GREY)
    return finished(picture)


def _direction(followed: Sequence[Trajectories]) -> Tensor:
    """Return the unit vector (C H W) along which the mean bends of all paths are largest, in the mean square."""
    bends = torch.cat([path.bends.mean(dim=0).flatten(1) for path in followed])
    direction = torch.linalg.svd(bends, full_matrices=False).Vh[0]
    return direction * direction[direction.abs().argmax()].sign()


def _along(states: Tensor, direction: Tensor) -> np.ndarray:
    """Return the part of states (N, B, C, H, W) along a direction, (N, B)."""
    return (states.flatten(2) @ direction).cpu().numpy()


class _Card:
    """What is drawn of one model."""

    def __init__(self, pen: Pen) -> None:
        self.pen = pen

    def titles(self, name: str, path: Trajectories) -> None:
        found = measure([path])
        self.pen.text(LEFT, 16, name if len(name) <= 46 else f"…{name[-45:]}", "lm", 15)
        told = (
            f"straightness {found.straightness.value:.4f}   one-step gap {found.one_step_gap.value:.4f}   (0 is"
            " straight)"
        )
        self.pen.text(LEFT, 36, told, "lm", 12, GREY)

    def panel(self, times: np.ndarray, values: np.ndarray, ends: tuple[float, float]) -> None:
        """Draw the lines (N + 1, B) of one value over time, noise at the left."""
        right, bottom = WIDTH - RIGHT - GAP, TOP + HEIGHT
        low, high = ends

        def x(t: float) -> float:
            return LEFT + (1 - t) * (right - LEFT)

        def y(value: float) -> float:
            return bottom - (value - low) / (high - low) * HEIGHT

        step = _round((high - low) / 5)
        for tick in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step:
            self.pen.line([(LEFT, y(tick)), (right, y(tick))], (236, 236, 239), 1)
            self.pen.text(LEFT - 6, y(tick), f"{tick:g}", "rm", 11, GREY)
        self.pen.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY, 1)
        for t in (1, 0.75, 0.5, 0.25, 0):
            self.pen.line([(x(t), bottom), (x(t), bottom + 4)], GREY, 1)
            self.pen.text(x(t), bottom + 13, f"{t:g}", "mm", 11, GREY)
        self.pen.text(LEFT, bottom + 30, "noise", "lm", 12, GREY)
        self.pen.text((LEFT + right) / 2, bottom + 30, "time t", "mm", 12, GREY)
        self.pen.text(right, bottom + 30, "image", "rm", 12, GREY)
        order = np.argsort(values[0])
        for seed in order:
            self.pen.line([(x(times[k]), y(values[k, seed])) for k in (0, -1)], FAINT, 1.2)
        for rank, seed in enumerate(order):
            points = [(x(t), y(value)) for t, value in zip(times, values[:, seed], strict=True)]
            self.pen.line(points, _colour(rank / max(1, len(order) - 1)), 1.6)

    def strips(self, path: Trajectories) -> None:
        """Show the clean images of the first seeds at even times; the last is where the path ends."""
        steps = len(path.clean)
        seen = torch.cat([path.clean, path.states[-1:]])[:, :ROWS]
        places = [round(k * steps / (COLUMNS - 1)) for k in range(COLUMNS)]
        for k, place in enumerate(places):
            left = LEFT + k * (TILE + GAP)
            self.pen.text(left + TILE / 2, STRIPS + 10, f"{float(path.times[place]):.3g}", "mm", 11, GREY)
            for row, image in enumerate(quantize(seen[place])):
                self.pen.tile(left, STRIPS + 22 + row * (TILE + GAP), image, TILE)
        self.pen.text(LEFT - 6, STRIPS + 10, "t", "rm", 12, GREY)


def _round(value: float) -> float:
    """Return the 1, 2 or 5 times a power of ten that is next above a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value)


def _colour(share: float) -> tuple[int, int, int]:
    """Return the colour at a place in [0, 1] of the scale."""
    place = share * (len(COLOURS) - 1)
    k = min(int(place), len(COLOURS) - 2)
    red, green, blue = (round(a + (place - k) * (b - a)) for a, b in zip(COLOURS[k], COLOURS[k + 1], strict=True))
    return red, green, blue
