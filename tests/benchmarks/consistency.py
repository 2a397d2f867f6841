"""What consistency models reach in one and two network calls on embedded digits, with equal budgets.

    python tests/benchmarks/consistency.py digits
    python tests/benchmarks/consistency.py mnist5k      # at 16x16

All arms have the same network, data and number of images seen; where a method starts from an EDM, that EDM's training
counts. Every arm gets as many trials, listed in the table: six on digits, and on mnist5k the three that were best
there, so that digits come first. The best of them, judged by samples of other seeds against the training images, is
trained with seeds 0, 1 and 2 and measured by five ranges of seeds against held-out images. The noise level at which
second steps begin is chosen once, in the same way, by the best trial of iCT. The EDM that is the ceiling has the rate
of its recipe. Every finished run is kept in results/consistency-DATA.jsonl, with the CPU time it took, so that an
interrupted table goes on where it stopped; delete that file to measure anew, as after any change to what is trained.
Writes results/consistency-DATA.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consistency_arms import ARMS, Arm, Trial
from consistency_table import table
from study import CHOSEN_BY, RESULTS, Record, Records, judge, protocol, side_by_side

from genflow.build import build_data, build_denoiser, build_loader, build_trainer
from genflow.config import Config, DataConfig
from genflow.config_files import find_recipe, load_config
from genflow.denoiser import Denoiser
from genflow.training.trainer import Trainer, make_accelerator

SEEDS = (0, 1, 2)
TRIAL_SEED = 100
POINTS = 5  # of a curve
BEST = 3  # trials that one data set takes over from another
MIDDLES = (0.2, 0.4, 0.821, 1.6, 3.2, 6.4, 12.8)  # noise levels that second steps are tried from; 0.821 as published


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One data set: its network, and how long runs and trials are."""

    name: str
    size: int
    width: int
    multipliers: tuple[int, ...]
    batch_size: int
    steps: int
    trial_steps: int
    after: str = ""
    """The data set whose best trials of each arm are tried; "" tries all."""


SETTINGS = {
    "digits": Setting(name="digits", size=0, width=16, multipliers=(1, 2), batch_size=128, steps=1500, trial_steps=500),
    "mnist5k": Setting(
        name="mnist5k",
        size=16,
        width=16,
        multipliers=(1, 2, 2),
        batch_size=64,
        steps=900,
        trial_steps=300,
        after="digits",
    ),
}


@dataclass(frozen=True)
class Given:
    """What a job needs besides its key."""

    setting: Setting
    out: Path


def folder_of(key: Record) -> str:
    """Name the folder of a run."""
    return "-".join(str(key[k]) for k in ("purpose", "arm", "trial", "seed")).replace(" ", "_")


def edm_key(seed: int, share: float) -> Record:
    """Return the job of an EDM with a share of the budget: the ceiling with all of it."""
    return {"purpose": "edm", "arm": f"edm-{share:g}", "trial": 0, "seed": seed}


def base(given: Given, recipe: str, key: Record, steps: int) -> Config:
    """Return a recipe with this data set's network and rhythm."""
    config, setting = load_config(find_recipe(recipe)), given.setting
    return replace(
        config,
        name=folder_of(key),
        out=str(given.out),
        seed=key["seed"],
        init="",
        data=DataConfig(path=setting.name, size=setting.size),
        backbone=replace(config.backbone, width=setting.width, multipliers=setting.multipliers),
        optim=replace(config.optim, ema_halflife=steps * setting.batch_size // 20),
        train=replace(
            config.train,
            steps=steps,
            batch_size=setting.batch_size,
            preview_every=0,
            checkpoint_every=10**6,
            threads=1,
            evaluate_every=max(1, steps // POINTS),
            evaluate_features=setting.name,
        ),
    )


def train_edm(given: Given, key: Record) -> Record:
    """Train an EDM, and measure it by Heun: as a ceiling, or for others to start from."""
    started = time.process_time()
    share = float(key["arm"].removeprefix("edm-"))
    config = base(given, "tiny-edm", key, round(share * given.setting.steps))
    config = replace(config, train=replace(config.train, evaluate_every=0))
    shutil.rmtree(config.folder, ignore_errors=True)
    denoiser = Denoiser.from_pretrained(build_trainer(config).fit())
    record: Record = {"steps": config.train.steps}
    if share == 1:
        embedded = protocol(given.setting.name, given.setting.size)
        measured = embedded.measure(denoiser, steps=18, sampler="heun")
        record |= {"distances": measured.distances, "floor": embedded.beside.floor.value}
    return record | {"cpu_seconds": time.process_time() - started}


def choose_middle(given: Given, key: Record) -> Record:
    """Choose the noise level at which second steps begin, by the best trial of iCT and what trials are judged by."""
    started = time.process_time()
    trial = given.out / folder_of(key | {"purpose": "tuning"})
    if not (trial / "model").is_dir():  # models are not kept with the records
        train(given, key | {"purpose": "tuning"})
    denoiser, embedded = Denoiser.from_pretrained(trial / "model"), judge(given.setting.name, given.setting.size)
    tried: dict[str, float] = {}
    for level in MIDDLES:
        denoiser.times = second_step(level)
        measured = embedded.measure(denoiser, steps=2, sampler="multistep", ranges=1, first_seed=CHOSEN_BY)
        tried[f"{level:g}"] = measured.figures["fd"].value
    best_level = min(MIDDLES, key=lambda level: tried[f"{level:g}"])
    return {"level": best_level, "tried": tried, "cpu_seconds": time.process_time() - started}


def second_step(level: float) -> dict[str, list[float]]:
    """Return the time grids of a model whose second step begins at this noise level."""
    return {"2": [80.0, level, 0.0]}


def trainer_of(config: Config, arm: Arm) -> Trainer:
    """Return the trainer of an arm: as the package builds it, or with a peer's objective."""
    if arm.peer is None:
        return build_trainer(config)
    accelerator = make_accelerator(config)
    data = build_data(config.data)
    denoiser = build_denoiser(config, data.image_shape, data.num_classes)
    objective = arm.peer(denoiser, config.train.steps)
    return Trainer(objective, build_loader(config, data, accelerator), config, accelerator=accelerator)


def train(given: Given, key: Record) -> Record:
    """Train and measure one run of an arm."""
    started = time.process_time()
    setting, arm = given.setting, ARMS[key["arm"]]
    trial: Trial = arm.trials[key["trial"]]
    whole = setting.steps if key["purpose"] == "table" else setting.trial_steps
    config = base(given, "tiny-ict", key, max(1, round(arm.share * whole)))
    config = arm.config(config, trial, str(given.out / folder_of(edm_key(start_seed(key), arm.edm_share)) / "model"))
    shutil.rmtree(config.folder, ignore_errors=True)
    final = key["purpose"] == "table"
    embedded = (protocol if final else judge)(setting.name, setting.size)
    spent, points = [0.0], []
    trainer = trainer_of(config, arm)

    def curve(denoiser: Denoiser) -> float:
        before = time.process_time()
        measured = embedded.measure(arm.sampled(denoiser), steps=1, sampler="multistep", ranges=1, first_seed=CHOSEN_BY)
        points.append(measured.figures["fd"].value)
        spent[0] += time.process_time() - before
        return points[-1]

    trainer.evaluate = curve if final else None
    trainer.fit()
    denoiser = arm.sampled(trainer.ema.denoiser.eval())
    record: dict[str, Any] = {"cpu_seconds": time.process_time() - started - spent[0], "steps": config.train.steps}
    if final:
        denoiser.times = second_step(key["middle"])
        measured = {k: embedded.measure(denoiser, steps=k, sampler="multistep") for k in (1, 2)}
        record |= {"distances": {str(k): m.distances for k, m in measured.items()}, "curve": points}
        record |= {name: measured[1].figures[name].value for name in ("memorising", "accuracy")}
    else:
        judged = embedded.measure(denoiser, steps=1, sampler="multistep", ranges=2, first_seed=CHOSEN_BY)
        record["distance"] = judged.figures["fd"].value
    return record | {"measured_cpu_seconds": time.process_time() - started - record["cpu_seconds"]}


def start_seed(key: Record) -> int:
    """Return the seed of the EDM that a run starts from: its own, or the first one's for trials."""
    return key["seed"] if key["purpose"] == "table" else SEEDS[0]


def ranked(records: Records, arm: str) -> list[int]:
    """Return the trials of an arm, the one with the least distance first."""
    tried = [r for r in records.all() if r["purpose"] == "tuning" and r["arm"] == arm]
    distances = {r["trial"]: r.get("distance", math.nan) for r in tried}
    return sorted(distances, key=lambda trial: distances[trial] if math.isfinite(distances[trial]) else math.inf)


def records_of(name: str) -> Records:
    """Return what is kept of a data set's jobs."""
    return Records(RESULTS / f"consistency-{name}.jsonl")


def trials_of(arm: str, setting: Setting) -> list[Record]:
    """Return the jobs that an arm is tuned by."""
    numbers = ranked(records_of(setting.after), arm)[:BEST] if setting.after else range(len(ARMS[arm].trials))
    return [{"purpose": "tuning", "arm": arm, "trial": trial, "seed": TRIAL_SEED} for trial in numbers]


def awaited(records: Records, edm: Record, setting: Setting) -> bool:
    """Tell whether runs that start from this EDM are still to be made."""
    jobs: list[Record] = []
    for name, arm in ARMS.items():
        if edm == edm_key(edm["seed"], arm.edm_share):
            jobs += [{"purpose": "table", "arm": name, "seed": edm["seed"]}]
            jobs += trials_of(name, setting) if edm["seed"] == SEEDS[0] else []
    return any(records.find(job) is None for job in jobs)


def stages(records: Records, given: Given) -> Iterator[tuple[Any, list[tuple[Record, bool]]]]:
    """Yield what to do, and jobs that may go side by side; each list builds on what came before."""
    shares = sorted({arm.edm_share for arm in ARMS.values() if arm.edm_share} | {1.0})
    edms = [edm_key(seed, share) for seed, share in itertools.product(SEEDS, shares)]
    lost = [
        not (given.out / folder_of(key) / "model").is_dir() and awaited(records, key, given.setting) for key in edms
    ]
    yield train_edm, list(zip(edms, lost, strict=True))
    yield train, [(key, False) for name in ARMS for key in trials_of(name, given.setting)]
    middle = {"purpose": "middle", "arm": "iCT", "trial": ranked(records, "iCT")[0], "seed": TRIAL_SEED}
    yield choose_middle, [(middle, False)]
    chosen = records.find(middle)
    assert chosen is not None
    runs = [
        {"purpose": "table", "arm": name, "trial": ranked(records, name)[0], "seed": seed, "middle": chosen["level"]}
        for seed, name in itertools.product(SEEDS, ARMS)
    ]
    yield train, [(key, False) for key in runs]


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--out", default=tempfile.gettempdir() + "/genflow-consistency", help="folder for the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    options = parser.parse_args()
    setting = SETTINGS[options.data]
    if setting.after and not all(len(ranked(records_of(setting.after), arm)) >= BEST for arm in ARMS):
        raise SystemExit(f"the trials of {setting.name} are the best of {setting.after}: measure that first")
    given = Given(setting, Path(options.out) / setting.name)
    records = records_of(setting.name)
    for action, jobs in stages(records, given):
        side_by_side(records, jobs, action, given, options.processes)
    text = table(records.all(), setting.name, setting.size)
    (RESULTS / f"consistency-{setting.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
