"""What each part of 2-RF++ is worth in one step, with equal budgets, on embedded digits.

    python tests/benchmarks/reflow.py digits
    python tests/benchmarks/reflow.py mnist5k      # at 16x16

Teachers and pairs are made first; then conditionings are compared, every arm gets the same learning rates to be tuned
by, and the best of each is trained with seeds 0, 1 and 2. Last, F is trained on for a twentieth of its steps on real
pairs, with lower rates, tried on seed 0. Trials are judged by samples of other seeds against the
training images, figures by five ranges of seeds against held-out images. Every finished run is kept in
results/reflow-DATA.jsonl, with the CPU time it took, so that an interrupted table goes on where it stopped; delete that
file to measure anew, as after any change to what is trained. Writes results/reflow-DATA.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from reflow_table import table
from study import CHOSEN_BY, RESULTS, Records, judge, protocol, quietly

from genflow.build import build_trainer
from genflow.cli.main import main as genflow
from genflow.config import (
    Config,
    DataConfig,
    KarrasConfig,
    LinearConfig,
    LPIPSHuberConfig,
    PackagedConfig,
    PredictVelocityConfig,
    PseudoHuberConfig,
    SquaredL2Config,
    UniformConfig,
    UShapedConfig,
    VelocityResidualConfig,
)
from genflow.config_files import find_recipe, load_config
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.evaluation.trajectories import even_times
from genflow.pixels import to_unit
from genflow.sampling.generate import generate
from genflow.sampling.inversion import invert, rising_times

SEEDS = (0, 1, 2)
REAL_RATES = (3e-5, 1e-4, 3e-4)  # of the fine-tuning on real pairs, which is short and gentle
WAYS = ("Euler", "Euler on even linear times", "Heun")  # of inversion; the first is on the model's own times
CONDITIONINGS: dict[str, KarrasConfig] = {
    "level to 99999": KarrasConfig(level_min=1e-5, level_max=99999.0),  # as published
    "level to 80": KarrasConfig(),
    "level to 20": KarrasConfig(level_max=20.0),
    "level to 5": KarrasConfig(level_max=5.0),
    "time": KarrasConfig(conditioning="time"),
    "time, from scratch": KarrasConfig(conditioning="time"),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One data set: its network, how long runs are, how many pairs there are."""

    name: str
    size: int
    width: int
    multipliers: tuple[int, ...]
    teacher_steps: int
    steps: int
    real_steps: int
    pairs: int
    rates: tuple[float, ...]  # that every arm is tried with


SETTINGS = {
    "digits": Setting(
        name="digits",
        size=0,
        width=32,
        multipliers=(1, 2),
        teacher_steps=2000,
        steps=1500,
        real_steps=75,
        pairs=20_000,
        rates=(5e-4, 1e-3, 2e-3),
    ),
    "mnist5k": Setting(
        name="mnist5k",
        size=16,
        width=16,
        multipliers=(1, 2, 4),
        teacher_steps=2000,
        steps=1000,
        real_steps=50,
        pairs=10_000,
        rates=(1e-3, 2e-3, 4e-3),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: what it is called by in the results."""

    arm: str
    conditioning: str
    rate: float
    seed: int
    purpose: str  # conditioning, tuning or table

    @property
    def name(self) -> str:
        """Of its folder."""
        conditioning = self.conditioning.replace(" ", "-").replace(",", "")
        return f"{self.purpose}-{self.arm}-{conditioning}-{self.rate:g}-{self.seed}"


class Study:
    """All runs on one data set, and what they need."""

    def __init__(self, setting: Setting, out: Path) -> None:
        self.setting = setting
        self.out = out / setting.name
        self.kept = Records(RESULTS / f"reflow-{setting.name}.jsonl")

    def base(self, recipe: str) -> Config:
        """Return a recipe with this data set's network, its rhythm left to the run."""
        config, setting = load_config(find_recipe(recipe)), self.setting
        backbone = replace(config.backbone, width=setting.width, multipliers=setting.multipliers)
        train = replace(config.train, steps=setting.teacher_steps, preview_every=0, checkpoint_every=10**6, threads=1)
        data = DataConfig(path=setting.name, size=setting.size)
        return replace(config, out=str(self.out), backbone=backbone, train=train, data=data)

    def teacher(self, recipe: str) -> dict[str, Any]:
        """Train a teacher; make the pairs of its students."""
        started = time.process_time()
        config = self.base(recipe)
        model = build_trainer(config).fit()
        trained = time.process_time() - started
        pairs = ["pairs", str(model), "--num", str(self.setting.pairs), "--out", str(self.pairs(recipe))]
        check(genflow([*pairs, "--sampler", "heun", "--steps", "18"]))
        record = {"model": recipe, "steps": config.train.steps, "rate": config.optim.lr, "cpu_seconds": trained}
        record["pairs_cpu_seconds"] = time.process_time() - started - trained
        embedded = self.embedded()
        denoiser = Denoiser.from_pretrained(model)
        record["distances"] = {
            str(k): embedded.measure(denoiser, steps=k, sampler="heun" if k > 1 else "euler").distances
            for k in (1, 2, 4, 18)
        }
        return record | {"floor": embedded.beside.floor.value, "gap": gap(denoiser, "heun")}

    def pairs(self, recipe: str) -> Path:
        """Where the pairs of a teacher lie."""
        return self.out / f"pairs-{recipe}"

    def real_pairs(self) -> dict[str, Any]:
        """Carry the training images back along the EDM teacher's flow."""
        started = time.process_time()
        source = [self.setting.name, *(["--data.size", str(self.setting.size)] if self.setting.size else [])]
        command = ["pairs", str(self.out / "tiny-edm" / "model"), "--out", str(self.out / "pairs-real"), "--invert"]
        check(genflow([*command, *source]))
        return {"model": "real pairs", "cpu_seconds": time.process_time() - started}

    def inversion(self) -> dict[str, Any]:
        """Carry held-out images to noise and back in as few calls: by the teacher, and by arm F of every seed."""
        started = time.process_time()
        runs = [r for r in self.records() if r.get("purpose") == "table" and r["arm"] == "F"]
        names = [Run(**{f.name: r[f.name] for f in dataclasses.fields(Run)}).name for r in runs]
        images = self.embedded().held_out
        x, labels = to_unit(torch.from_numpy(images.images[:256])), images.labels[:256].tolist()
        found: dict[str, Any] = {"model": "inversion"}
        for name in ["tiny-edm", *names]:
            model = Denoiser.from_pretrained(self.out / name / "model")
            for way in WAYS if name == "tiny-edm" else WAYS[:1]:
                kind = f"teacher, {way}" if name == "tiny-edm" else "F"
                for calls in (2, 4, 8):
                    noise, back = there_and_back(model, x, labels, way, calls)
                    found.setdefault(f"{kind} {calls}", []).append(float((back - x).square().mean()))
                found.setdefault(f"{kind} norm", []).append(float(noise.square().mean()))
        return found | {"cpu_seconds": time.process_time() - started}

    def config(self, run: Run) -> Config:
        """Return the configuration of a run: the arms differ in what is named here, and in nothing else."""
        base, setting = self.base("tiny-reflow"), self.setting
        perceptual = PackagedConfig(name="mnist5k" if setting.size else "digits")
        times = UniformConfig() if run.arm == "A" else UShapedConfig(a=0.0 if run.arm == "B" else 4.0)
        match run.arm:
            case "A" | "B" | "C":
                metric = SquaredL2Config()
            case "D":
                metric = PseudoHuberConfig()
            case _:
                metric = LPIPSHuberConfig(perceptual=perceptual, divide_by_t=True)
        teacher = "tiny-rf" if run.arm == "A" else "tiny-edm"
        steps = setting.steps if run.purpose == "table" else setting.steps // 2  # trials are half as long
        init, pairs = self.out / teacher / "model", self.pairs(teacher)
        if run.arm == "G":
            init, pairs, steps = self.start_of(run), self.out / "pairs-real", setting.real_steps
        objective = replace(base.objective, times=times, metric=metric, residual=VelocityResidualConfig())
        return replace(
            base,
            name=run.name,
            seed=run.seed,
            init="" if run.conditioning.endswith("from scratch") and run.arm != "G" else str(init),
            data=DataConfig(path=str(pairs)),
            schedule=LinearConfig(),
            parameterization=PredictVelocityConfig() if run.arm == "A" else CONDITIONINGS[run.conditioning],
            objective=objective,
            optim=replace(base.optim, lr=run.rate, warmup=100 if steps > 200 else 0),
            train=replace(base.train, steps=steps, evaluate_every=steps // 5, evaluate_features=setting.name),
            sample=replace(base.sample, sampler="euler", steps=1),
        )

    def start_of(self, run: Run) -> Path:
        """Return the model that fine-tuning on real pairs starts from: arm F of the same seed."""
        start = replace(run, arm="F", rate=self.best_rate("F", run.conditioning), purpose="table")
        return self.out / start.name / "model"

    def train(self, run: Run) -> dict[str, Any]:
        """Train and measure one run."""
        started = time.process_time()
        config = self.config(run)
        shutil.rmtree(config.folder, ignore_errors=True)  # of a run that ended before its record, without its curve
        trainer = build_trainer(config)
        embedded = (judge if run.purpose != "table" else protocol)(self.setting.name, self.setting.size)
        spent = [0.0]

        def curve(denoiser: Denoiser) -> float:
            before = time.process_time()
            distance = embedded.measure(denoiser, ranges=1, first_seed=CHOSEN_BY).figures["fd"].value
            spent[0] += time.process_time() - before
            points.append(distance)
            return distance

        points: list[float] = []
        trainer.evaluate = curve
        denoiser = Denoiser.from_pretrained(trainer.fit())
        record: dict[str, Any] = asdict(run) | {
            "cpu_seconds": time.process_time() - started - spent[0],
            "curve": points,
        }
        if run.purpose == "table":
            measured = {k: embedded.measure(denoiser, steps=k) for k in (1, 2, 4)}
            record["distances"] = {str(k): found.distances for k, found in measured.items()}
            record["memorising"] = measured[1].figures["memorising"].value
            record["accuracy"] = measured[1].figures["accuracy"].value
            record["gap"] = gap(denoiser, "euler")
        else:
            record["distance"] = embedded.measure(denoiser, ranges=2, first_seed=CHOSEN_BY).figures["fd"].value
        return record | {"measured_cpu_seconds": time.process_time() - started - record["cpu_seconds"]}

    def embedded(self) -> Embedded:
        """Return the protocol of reported figures."""
        return protocol(self.setting.name, self.setting.size)

    def records(self) -> list[dict[str, Any]]:
        """Return all that is finished."""
        return self.kept.all()

    def is_done(self, job: Run | str) -> bool:
        """Tell whether a job has its record."""
        if isinstance(job, str):
            return job in [r.get("model") for r in self.records()]
        return asdict(job) in [{f.name: r.get(f.name) for f in dataclasses.fields(Run)} for r in self.records()]

    def lacks(self, job: Run | str) -> bool:
        """Tell whether what others start from has gone since, as with a folder for temporary files; models are not kept
        with the records.
        """
        match job:
            case Run(arm="F", purpose="table", name=name):
                return not (self.out / name / "model").is_dir()
            case "tiny-edm" | "tiny-rf":
                return not ((self.out / job / "model").is_dir() and self.pairs(job).is_dir())
            case "real pairs":
                return not (self.out / "pairs-real").is_dir()
            case _:
                return False

    def best_conditioning(self) -> str:
        """Return the conditioning with the least distance at arm F."""
        tried = [r for r in self.records() if r.get("purpose") == "conditioning" and r["arm"] == "F"]
        return min(tried, key=lambda r: r["distance"])["conditioning"]

    def best_rate(self, arm: str, conditioning: str) -> float:
        """Return the learning rate with the least distance of an arm's trials."""
        tried = [r for r in self.records() if r.get("purpose") == "tuning" and r["arm"] == arm]
        return min((r for r in tried if r["conditioning"] == conditioning), key=lambda r: r["distance"])["rate"]


def there_and_back(
    model: Denoiser, x: torch.Tensor, labels: list[int], way: str, calls: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the noise of images, and what comes back, each by at most so many network calls."""
    schedule = model.schedule
    sampler, up, down = "euler", rising_times(schedule, calls), schedule.times(calls)
    if way == WAYS[1]:
        down = even_times(schedule, calls)
        up = torch.cat([down[:-1], torch.tensor([schedule.t_min], dtype=down.dtype)]).flip(0)
    elif way == WAYS[2]:  # two calls a step, but in the last one down
        sampler, up, down = "heun", rising_times(schedule, calls // 2), schedule.times((calls + 1) // 2)
    noise = invert(model, x, labels=labels, sampler=sampler, times=up.tolist())
    state = schedule.sigma(down[0]).float() * noise
    seeds = range(len(x))
    return noise, generate(model, seeds, labels=labels, sampler=sampler, times=down.tolist(), x=state, output="float")


def gap(denoiser: Denoiser, sampler: str) -> float:
    """Return the mean squared difference of one-step and 32-step images of the same seeds, in [-1, 1] units."""
    seeds, labels = range(256), [k % 10 for k in range(256)]
    one = generate(denoiser, seeds, labels=labels, steps=1, sampler="euler", output="float")
    many = generate(denoiser, seeds, labels=labels, steps=32, sampler=sampler, output="float")
    return float((one - many).square().mean())


def check(code: int) -> None:
    """Stop where a command has failed; it has said why."""
    if code:
        raise SystemExit(code)


def stages(study: Study) -> Iterator[list[Run]]:
    """Yield runs that may go side by side; each list builds on what came before."""
    trial = [
        Run(arm=arm, conditioning=c, rate=1e-3, seed=100, purpose="conditioning")
        for c, arm in itertools.product(CONDITIONINGS, ("F", "B"))
    ]
    yield trial
    best = study.best_conditioning()
    for arms, rates in (("ABCDF", study.setting.rates), ("G", REAL_RATES)):
        yield [
            Run(arm=arm, conditioning=best, rate=rate, seed=100 if arm != "G" else 0, purpose="tuning")
            for arm, rate in itertools.product(arms, rates)
        ]
        yield [
            Run(arm=arm, conditioning=best, rate=study.best_rate(arm, best), seed=seed, purpose="table")
            for seed, arm in itertools.product(SEEDS, arms)
        ]


def work(setting: str, out: str, job: Run | str) -> dict[str, Any]:
    """Do one job."""
    study = Study(SETTINGS[setting], Path(out))
    match job:
        case Run():
            return study.train(job)
        case "real pairs":
            return study.real_pairs()
        case "inversion":
            return study.inversion()
        case _:
            return study.teacher(job)


def do(study: Study, jobs: Iterable[Run | str], processes: int) -> None:
    """Do the jobs that are not done yet, so many at a time, and keep each record at once."""
    left = [job for job in jobs if not study.is_done(job) or study.lacks(job)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(quietly, work, study.setting.name, str(study.out.parent), job): job for job in left}
        for finished in as_completed(running):
            record = finished.result()
            if study.is_done(running[finished]):  # made anew only because its model was gone
                continue
            study.kept.add(record)
            print({k: v for k, v in record.items() if k != "curve"}, flush=True)


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--out", default=tempfile.gettempdir() + "/genflow-reflow", help="folder for the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    options = parser.parse_args()
    study = Study(SETTINGS[options.data], Path(options.out))
    if not study.is_done("inversion"):
        do(study, ["tiny-edm", "tiny-rf"], options.processes)
        for stage in stages(study):
            do(study, ["real pairs"] if any(run.arm == "G" for run in stage) else [], 1)
            do(study, stage, options.processes)
        do(study, ["inversion"], 1)
    text = table(study.records(), study.setting.name, study.setting.size)
    (RESULTS / f"reflow-{options.data}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
