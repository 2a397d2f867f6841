"""Train the small frozen networks in ``assets/features``: two that judge, two for losses.

Run ``python assets/train_features.py`` (a few CPU-minutes each; ``--only digits`` for one). Only the
training split of the embedded data is used for training; the held-out accuracy is measured on the
weights as stored (float16) and written into the file's metadata with everything needed to repeat it.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from genflow.data.embedded import fingerprint
from genflow.data.images import ImageData, load_images
from genflow.evaluation.networks.digits import LossNetwork, PlainNet
from genflow.pixels import to_unit


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One network to train."""

    data: str
    architecture: str
    seed: int
    steps: int
    batch: int = 128
    lr: float = 2e-3
    shift: float = 0.12
    """Largest shift as a share of the half-width."""


RECIPES = {
    "digits": Recipe("digits", "PlainNet", seed=1, steps=2500, shift=0.15),
    "mnist5k": Recipe("mnist5k", "PlainNet", seed=2, steps=3000, batch=64),
    "digits-loss": Recipe("digits", "LossNetwork", seed=11, steps=2500, shift=0.15),
    "mnist5k-loss": Recipe("mnist5k", "LossNetwork", seed=12, steps=2500, batch=64),
}


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Images x as the network sees them, ``sharp`` before noise and blur, and their strengths."""

    x: Tensor  # (B, 1, H, W)
    sharp: Tensor  # (B, 1, H, W)
    damage: Tensor  # (B, 2) in [0, 1]


def augment(x: Tensor, shift: float, generator: torch.Generator) -> Augmented:
    """Small rotations, scalings, shifts, blur and noise of x (B, 1, H, W) in [-1, 1]."""
    r = torch.rand(8, len(x), generator=generator) * 2 - 1
    angle, scale = 0.22 * r[0], 1 + 0.12 * r[1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [cos, -sin, shift * r[2], sin, cos, shift * r[3]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1
    sharp = torch.where((r[4] > 0).view(-1, 1, 1, 1), moved, x)  # half are not moved
    noisy, blurred = r[5].clamp(min=0), r[6].clamp(min=0)  # half of each stay undamaged
    soft = F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, 1)
    seen = torch.lerp(sharp, soft, blurred.view(-1, 1, 1, 1))
    noise = torch.randn(x.shape, generator=generator)
    seen = seen + 0.3 * noisy.view(-1, 1, 1, 1) * noise
    return Augmented(seen, sharp, torch.stack([noisy, blurred], dim=1))


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """Class scores (B, 10) of either architecture."""
    out = network(x)
    return out[1] if isinstance(network, PlainNet) else out


def train(recipe: Recipe, data: ImageData) -> nn.Module:
    """A network trained on ``data``, in evaluation mode."""
    assert data.labels is not None
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    size = data.image_shape[1]
    network = PlainNet(size) if recipe.architecture == "PlainNet" else LossNetwork()
    x, y = to_unit(torch.from_numpy(data.images)), torch.from_numpy(data.labels)
    redraw = nn.Sequential(nn.Linear(64, 192), nn.SiLU(), nn.Linear(192, size * size + 2))
    learnt = [*network.parameters(), *redraw.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=recipe.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
    for _ in trange(recipe.steps, desc=recipe.data, mininterval=5):
        pick = torch.randint(len(x), (recipe.batch,), generator=generator)
        seen = augment(x[pick], recipe.shift, generator)
        if isinstance(network, PlainNet):
            vector, scores = network(seen.x)
            drawn = redraw(vector)
            goal = torch.cat([seen.sharp.flatten(1), seen.damage], dim=1)
            weight = torch.tensor([1.0] * (size * size) + [size * size / 20] * 2)
            loss = F.cross_entropy(scores, y[pick]) + 4 * (weight * (drawn - goal) ** 2).mean()
        else:
            loss = F.cross_entropy(network(seen.x), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    if isinstance(network, PlainNet):
        network.balance.copy_(balance(network(x)[0]))
    return network


def balance(features: Tensor) -> Tensor:
    """The matrix c C^-1/4 (D, D) for features (N, D): half way to whitening, mean variance one."""
    values, vectors = torch.linalg.eigh(features.double().T.cov())
    values = values.clamp(min=1e-6 * float(values[-1]))
    half = (vectors * values**-0.25) @ vectors.T
    return (half / values.sqrt().mean().sqrt()).float()


def accuracy(network: nn.Module, data: ImageData) -> float:
    """Share of images whose greatest score is at their label."""
    assert data.labels is not None
    scores = logits_of(network, to_unit(torch.from_numpy(data.images)))
    return float((scores.argmax(1) == torch.from_numpy(data.labels)).float().mean())


def make(name: str, out: Path, cpu_threads: int) -> None:
    """Train, store and measure one network."""
    torch.set_num_threads(cpu_threads)
    recipe = RECIPES[name]
    data, held_out = load_images(recipe.data, "train"), load_images(recipe.data, "test")
    assert data.labels is not None
    network = train(recipe, data)
    state = {k: v.half() for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.float() for k, v in state.items()})
    metadata = {
        **dataclasses.asdict(recipe),
        "size": data.image_shape[1],
        "parameters": sum(p.numel() for p in network.parameters()),
        "held_out_accuracy": accuracy(network, held_out),
        "train_accuracy": accuracy(network, data),
        "train_sha256": fingerprint(data.images, data.labels),
        "torch": str(torch.__version__),
    }
    out.mkdir(parents=True, exist_ok=True)
    packed = {"format": "pt", "genflow": json.dumps(metadata)}
    path = out / f"{name}.safetensors"
    save_file(state, path, packed)
    path.chmod(0o644)  # save_file leaves it to the owner alone, and so would a wheel
    print(name, json.dumps(metadata))


def main() -> None:
    """Train all networks, or one."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=list(RECIPES), action="append")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "features")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    for name in given.only or RECIPES:
        make(name, given.out, given.threads)


if __name__ == "__main__":
    main()
