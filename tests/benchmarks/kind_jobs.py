"""The jobs of ``kind.py``: training on the base classes, fitting to new ones, parts of a model, one step."""

from __future__ import annotations

import bisect
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kind_arms import ARMS, BASE, FEW_SHARES, NOVEL, SHARE, SHARES, STARTS, WIDTH
from kind_measure import Judge, diversion, extraction_is_lossless
from study import CHOSEN_BY, Record

from genflow import kind
from genflow.adapters import merged
from genflow.build import build_trainer
from genflow.cli.main import main as genflow
from genflow.config import (
    Config,
    DataConfig,
    DiTConfig,
    IntactConfig,
    KarrasConfig,
    KINDConfig,
    LPIPSHuberConfig,
    OptimConfig,
    PackagedConfig,
    SurgeryConfig,
    TransferConfig,
)
from genflow.config_files import find_recipe, load_config
from genflow.data.decoding import Decoding
from genflow.data.images import load_images
from genflow.denoiser import Denoiser
from genflow.nn.dit import DiT

JUDGED_AT = (5, 20)  # the shares that trials are judged at, so that neither the start nor the end decides alone
TRUNCATED_SHARE = 20  # that a truncated model is trained again
DEPTH, HEADS = 4, 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One data set: its network, how long runs are, how often they are repeated and measured."""

    name: str
    size: int
    patch_size: int
    steps: int  # on the base classes, and at most on new ones
    seeds: tuple[int, ...]
    few_seeds: tuple[int, ...]  # of fits to few images
    ranges: int  # of seeds, on the way
    batch_size: int = 64
    sample_steps: int = 9
    rates: Mapping[str, tuple[float, ...]]  # that each job is tried with at first; a single one is taken untried
    trial_share: int  # per cent of the steps that trials on the base classes have
    pairs: int = 6000


@dataclass(frozen=True)
class Given:
    """What a job needs besides its key."""

    setting: Setting
    out: Path

    def judge(self, digits: tuple[int, ...], *, trial: bool = False) -> Judge:
        """Return what measures these digits."""
        return Judge.load(self.setting.name, self.setting.size, digits, trial=trial)


def folder_of(key: Record) -> str:
    """Name the folder of a run."""
    name = "-".join(str(key[k]) for k in ("job", "purpose", "arm", "rate", "seed", "classes", "images") if k in key)
    return "".join(c if c.isalnum() or c in "-.+" else "_" for c in name)


def steps_of(given: Given, per_cent: int) -> int:
    """Return a share of the steps on the base classes."""
    return max(1, given.setting.steps * per_cent // 100)


def base(given: Given, key: Record, steps: int, *, recipe: str = "tiny-edm", width: int = WIDTH) -> Config:
    """Return a recipe with this data set's transformer and rhythm, on the base classes."""
    config, setting = load_config(find_recipe(recipe)), given.setting
    return replace(
        config,
        name=folder_of(key),
        out=str(given.out),
        seed=key["seed"],
        init="",
        data=DataConfig(path=setting.name, size=setting.size, keep=BASE),
        backbone=DiTConfig(width=width, depth=DEPTH, heads=HEADS, patch_size=setting.patch_size),
        optim=replace(config.optim, lr=key["rate"], warmup=min(config.optim.warmup, steps // 10)),
        train=replace(
            config.train,
            steps=steps,
            batch_size=setting.batch_size,
            preview_every=0,
            checkpoint_every=10**6,
            evaluate_every=0,
            threads=1,
        ),
        sample=replace(config.sample, steps=setting.sample_steps if config.sample.sampler == "heun" else 1),
    )


def fit(config: Config, look: Look | None = None) -> tuple[Denoiser, Record]:
    """Train a run from its start; return the averaged model, and what it took."""
    shutil.rmtree(config.folder, ignore_errors=True)  # of a run that ended before its record
    started = time.process_time()
    trainer = build_trainer(config)
    trainer.evaluate = look
    trained = sum(p.numel() for p in trainer.objective.denoiser.parameters() if p.requires_grad)
    trainer.fit()
    looked = look.spent if look is not None else 0.0
    seconds = time.process_time() - started - looked
    return trainer.ema.denoiser.eval(), {"trained": trained, "steps": config.train.steps, "cpu_seconds": seconds}


class Look:
    """Measures a run when shares of it are done; called every ``every`` steps, it never has a model kept for that."""

    def __init__(self, every: int, wanted: dict[int, int], measure: Callable[[Denoiser, int], Record]) -> None:
        self.every = every
        self.wanted = wanted  # steps, and the share that they are
        self.measure = measure
        self.done = 0
        self.spent = 0.0
        self.found: dict[str, Record] = {}

    def __call__(self, denoiser: Denoiser) -> float:
        before = time.process_time()
        self.done += self.every
        share = self.wanted.get(self.done)
        if share is not None:
            self.found[str(share)] = self.measure(denoiser, share)
        self.spent += time.process_time() - before
        return math.inf


def look_at(given: Given, shares: Iterable[int], measure: Callable[[Denoiser, int], Record]) -> Look:
    """Return what measures a run at shares of the steps on the base classes."""
    wanted = {steps_of(given, share): share for share in shares}
    return Look(math.gcd(*wanted), wanted, measure)


def figures(judge: Judge, denoiser: Denoiser, ranges: int) -> Record:
    """Measure a model."""
    measured = judge.measure(denoiser, ranges=ranges)
    distances = measured.distances or (measured.figures["fd"].value,)
    found: Record = {"distances": list(distances)}
    return found | {name: measured.figures[name].value for name in ("accuracy", "memorising")}


def parameters(backbone: torch.nn.Module) -> int:
    """Return the number of stored parameters."""
    return sum(p.numel() for p in backbone.parameters())


def deployed(denoiser: Denoiser) -> Record:
    """Count what is stored of a model, adapters merged if they can be, and the products of one image of one class."""
    match denoiser.backbone:
        case kind.Decomposed() as model:
            total = kind.info(model, denoiser.image_shape).total
            return {"stored": total.parameters, "macs": total.macs}
        case kind.ClassLoRA() as model:
            return {"stored": parameters(model), "macs": macs(kind.merge_class(model, 0), denoiser.image_shape)}
        case model:
            plain = merged(model)
            return {"stored": parameters(plain), "macs": macs(plain, denoiser.image_shape)}


def macs(backbone: torch.nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count the products of a dense network for one image, as torch's counter does."""
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, *image_shape), torch.zeros(1), None, None)
    return counter.get_total_flops() // 2


def pretrain(given: Given, key: Record) -> Record:
    """Train on the base classes; a trial is judged, another is measured, and changed into what arms start from."""
    trial = key["purpose"] == "trial"
    steps = steps_of(given, given.setting.trial_share if trial else 100)
    config = replace(base(given, key, steps), surgery=STARTS[key["arm"]].surgery)
    denoiser, record = fit(config)
    judge = given.judge(BASE, trial=trial)
    if trial:
        return record | {"score": judge.measure(denoiser, ranges=1, first_seed=CHOSEN_BY).figures["fd"].value}
    started = time.process_time()
    record |= figures(judge, denoiser, 5) | {"losses": judge.losses(denoiser)} | deployed(denoiser)
    record |= {"floor": judge.beside.floor.value, "read_right": judge.read_right()}
    match key["arm"]:
        case "kind":
            record |= {"diversion": asdict(diversion(denoiser, judge)), "lossless": extraction_is_lossless(denoiser)}
            save(grown(denoiser, key["seed"], random=False), config.folder / "grown")
            save(grown(denoiser, key["seed"], random=True), config.folder / "random")
        case "ungated":
            model = denoiser.backbone
            assert isinstance(model, kind.Decomposed)
            save(denoiser.around(kind.merge(model)), config.folder / "merged")
        case _:
            if key["seed"] == given.setting.seeds[0]:
                save(truncated(given, key, config.folder / "model"), config.folder / "truncated")
    return record | {"measured_cpu_seconds": time.process_time() - started}


def grown(denoiser: Denoiser, seed: int, *, random: bool) -> Denoiser:
    """Return a KIND model with random tailors for new classes alone; its learngenes too may be random directions."""
    model = denoiser.backbone
    assert isinstance(model, kind.Decomposed)
    drawn = torch.Generator().manual_seed(seed)
    model = kind.add_tailors(kind.remove_tailors(model), len(NOVEL), generator=drawn)
    if random:
        with torch.no_grad():
            for part in (p for linear in model.linears().values() for p in (linear.learngene_u, linear.learngene_v.mT)):
                fresh = torch.randn(part.shape, generator=drawn)
                part.copy_(fresh * part.norm(dim=0) / fresh.norm(dim=0))
    return denoiser.around(model)


def truncated(given: Given, key: Record, dense: Path) -> Denoiser:
    """Return a dense model whose kernels keep as many components as there are learngenes, trained on for a while."""
    config = base(given, key, steps_of(given, TRUNCATED_SHARE))
    no_tailors = KINDConfig(class_to_tailor=(-1,) * len(BASE), learngenes=SHARE, rescale=False)
    named = {"name": f"{config.name}-truncated", "init": str(dense), "surgery": no_tailors}
    denoiser, _ = fit(replace(config, **named))  # pyright: ignore[reportArgumentType]
    model = denoiser.backbone
    assert isinstance(model, kind.Decomposed)
    return denoiser.around(kind.merge(model))


def save(denoiser: Denoiser, folder: Path) -> None:
    """Write a model for others to start from."""
    denoiser.save_pretrained(folder)


def start_key(key: Record, rates: dict[str, float], given: Given) -> Record:
    """Return the key of the model that a transfer starts from: of its own seed, or of the first one for trials."""
    arm = ARMS[key["arm"]].start
    seed = key["seed"] if key["purpose"] == "table" else given.setting.seeds[0]
    return {"job": "pretrain", "purpose": "table", "arm": arm, "rate": rates[arm], "seed": seed}


def transfer(given: Given, key: Record) -> Record:
    """Fit a model to the new classes, or to few images of them, and measure it on the way."""
    trial = key["purpose"] == "trial"
    arm, shares = ARMS[key["arm"]], JUDGED_AT if trial else FEW_SHARES if "images" in key else SHARES
    config = base(given, key, steps_of(given, shares[-1]))
    start = given.out / key["start"] / arm.form
    data = DataConfig(path=str(few(given, key))) if "images" in key else replace(config.data, keep=NOVEL)
    config = replace(
        config,
        init=str(start) if arm.start else "",
        data=data,
        surgery=arm.surgery,
        optim=steady(config.optim),
    )
    judge = given.judge(NOVEL, trial=trial)

    def measure(denoiser: Denoiser, share: int) -> Record:
        if trial:
            return {"fd": judge.measure(denoiser, ranges=1, first_seed=CHOSEN_BY).figures["fd"].value}
        found = figures(judge, denoiser, 5 if share == 100 else given.setting.ranges)
        return found | {"losses": judge.losses(denoiser)}

    look = look_at(given, shares, measure)
    train = replace(config.train, evaluate_every=look.every, evaluate_features=given.setting.name)
    denoiser, record = fit(replace(config, train=train), look)
    record |= {"measured_cpu_seconds": look.spent} | deployed(denoiser)
    if trial:
        return record | {"score": math.exp(sum(math.log(f["fd"]) for f in look.found.values()) / len(look.found))}
    return record | {"found": look.found, "floor": judge.beside.floor.value, "read_right": judge.read_right()}


def few(given: Given, key: Record) -> Path:
    """Write a file of so many training images of each new class, which the seed chooses, and return its path.

    Classes are numbered from 0 in it, as a run that keeps these digits alone numbers them.
    """
    data = load_images(given.setting.name, decoding=Decoding(size=given.setting.size or None))
    assert data.labels is not None
    drawn = np.random.default_rng(key["seed"])
    each = [drawn.choice(np.flatnonzero(data.labels == digit), key["images"], replace=False) for digit in NOVEL]
    chosen, path = np.concatenate(each), given.out / f"{folder_of(key)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.asarray(data.images)[chosen], labels=data.labels[chosen] - NOVEL[0])
    return path


def steady(optim: OptimConfig) -> OptimConfig:
    """Return the same at one rate, so that what is measured on the way is what a shorter run would have reached."""
    return replace(optim, decay="constant", warmup=0)


def part(given: Given, key: Record) -> Record:
    """Extract the first classes, and train a dense network of as many parameters on these alone."""
    chosen = BASE[: key["classes"]]
    judge = given.judge(chosen)
    whole = Denoiser.from_pretrained(given.out / key["start"] / "model")
    assert isinstance(whole.backbone, kind.Decomposed)
    small = whole.around(kind.extract(whole.backbone, chosen)).eval()
    stored = parameters(small.backbone)
    width = width_of(given, stored, len(chosen))
    config = base(given, key, given.setting.steps, width=width)
    denoiser, record = fit(replace(config, surgery=IntactConfig(), data=replace(config.data, keep=chosen)))
    record |= {"stored": stored, "extracted": figures(judge, small, 5), "floor": judge.beside.floor.value}
    return record | {
        "width": width,
        "dense_stored": parameters(denoiser.backbone),
        "dense": figures(judge, denoiser, 5),
    }


def width_of(given: Given, stored: int, classes: int) -> int:
    """Return the width of a dense transformer with about so many parameters."""
    side = given.setting.size or 8

    def count(width: int) -> int:
        with torch.device("meta"):
            arguments = {"image_size": (side, side), "in_channels": 1, "patch_size": given.setting.patch_size}
            return parameters(DiT(**arguments, num_classes=classes, width=width, depth=DEPTH, heads=HEADS))

    widths = range(HEADS, 4 * WIDTH, HEADS)
    above = bisect.bisect_left(widths, stored, key=count)
    return min(widths[above - 1 : above + 1], key=lambda width: abs(count(width) - stored))


def pairs_folder(given: Given, form: str) -> Path:
    """Return where the pairs of the dense start, or of the decomposed one, lie."""
    return given.out / f"pairs-{form}"


def make_pairs(given: Given, key: Record) -> Record:
    """Have a start make pairs for the one-step models that are trained on them."""
    folder = pairs_folder(given, key["arm"])
    started = time.process_time()
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    wanted = ["--num", str(given.setting.pairs), "--out", str(partial), "--sampler", "heun", "--steps", "18"]
    if code := genflow(["pairs", str(given.out / key["start"] / "model"), *wanted]):
        raise RuntimeError(f"pairs were not made: exit code {code}")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return {"cpu_seconds": time.process_time() - started}


def one_step(given: Given, key: Record) -> Record:
    """Train a one-step model on the base classes, dense or decomposed; a trial is judged, another is measured.

    Trials are as long as the others: rates that iCT bears in short runs are too high for long ones.
    """
    method, form = key["arm"].split(", ")
    trial, steps = key["purpose"] == "trial", given.setting.steps
    start = given.out / key["start"] / "model"
    surgery: SurgeryConfig = IntactConfig() if form == "dense" else STARTS["kind"].surgery
    if method == "iCT":
        config = base(given, key, steps, recipe="tiny-ict")
        optim = replace(config.optim, beta2=0.99, clip=1.0)  # or a decomposed one falls apart, with some seeds
        config = replace(config, surgery=surgery, optim=optim)
    else:
        config = base(given, key, steps, recipe="tiny-reflow")
        assert isinstance(config.parameterization, KarrasConfig)
        metric = LPIPSHuberConfig(perceptual=PackagedConfig(name=given.setting.name), divide_by_t=True)  # pyright: ignore[reportArgumentType]
        config = replace(
            config,
            init=str(start),
            data=DataConfig(path=str(pairs_folder(given, form))),
            surgery=surgery if form == "dense" else TransferConfig(trains="all"),
            objective=replace(config.objective, metric=metric),
        )
    denoiser, record = fit(config)
    started = time.process_time()
    judge = given.judge(BASE, trial=trial)
    if trial:
        return record | {"score": judge.measure(denoiser, ranges=1, first_seed=CHOSEN_BY).figures["fd"].value}
    measured: dict[str, Any] = figures(judge, denoiser, 5)
    measured |= {"floor": judge.beside.floor.value, "read_right": judge.read_right()}
    if form == "KIND":
        measured |= {"diversion": asdict(diversion(denoiser, judge)), "lossless": extraction_is_lossless(denoiser)}
    return record | measured | {"measured_cpu_seconds": time.process_time() - started}
