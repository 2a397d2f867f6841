"""KIND beside adapters of a dense network: new classes, parts of a model, diversion, and one step, on embedded digits.

    python tests/benchmarks/kind.py digits
    python tests/benchmarks/kind.py mnist5k      # at 16x16

Networks are trained on the digits 0 to 5 by EDM and fitted to 6 to 9; what each arm is, and for which ones every seed
is run, is in ``kind_arms.py``. New classes get as many steps as the base classes had, and are measured after 2, 4, 5,
20 and 100 per cent of them, at a constant learning rate, so that each is what a run of that length reaches. KIND, LoRA,
LoRA for each class, PiSSA, DoRA, LoHa, OFT and the truncation train nearly as many numbers. The learning rate of each
arm is chosen once, by runs from the first seed's start that are judged by samples of other seeds against the training
images: from two or three, and while the best is the highest or lowest tried, from up to two beyond it. Such runs are
shorter for new classes and, on digits, for base ones. One-step models of mnist5k have iCT's best rate on digits.
Figures are against held-out images, which no choice has seen. Some arms are fitted to few images of each new class,
too.

What is asked of KIND was written down before: pass marks are in ``kind_table.py``. Every finished run is kept in
results/kind-DATA.jsonl with the CPU time it took, so that an interrupted evaluation goes on where it stopped; delete
that file to measure anew, as after any change to what is trained. Writes results/kind-DATA.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kind_arms import ARMS, BASE, FEW, FEW_ARMS, ONE_STEP, STARTS
from kind_jobs import Given, Setting, folder_of, make_pairs, one_step, pairs_folder, part, pretrain, start_key, transfer
from kind_table import table
from study import RESULTS, Record, Records, side_by_side

TRIAL_SEED = 100
BEYOND = 2  # rates that may be tried beyond those of a setting
SETTINGS = {
    "digits": Setting(
        name="digits",
        size=0,
        patch_size=2,
        steps=2000,
        seeds=(0, 1, 2, 3, 4),
        few_seeds=(0, 1, 2),
        ranges=3,
        rates={"pretrain": (1e-3, 2e-3, 4e-3), "transfer": (1e-3, 2e-3, 4e-3), "one step": (5e-4, 1e-3, 2e-3)},
        trial_share=30,
    ),
    "mnist5k": Setting(
        name="mnist5k",
        size=16,
        patch_size=4,
        steps=3000,
        seeds=(0, 1, 2),
        few_seeds=(0,),
        ranges=2,
        rates={"pretrain": (4e-3, 8e-3), "transfer": (8e-3, 1.6e-2), "one step": (2e-3,)},
        trial_share=100,  # shorter ones choose 0.016, which is too high for whole runs
    ),
}


def scores(records: Records, job: str, arm: str) -> dict[float, float]:
    """Return the score of each learning rate that was tried, infinite if it failed."""
    tried = [r for r in records.all() if (r["job"], r["purpose"], r["arm"]) == (job, "trial", arm)]
    found = {r["rate"]: r.get("score", math.nan) for r in tried}
    return {rate: score if math.isfinite(score) else math.inf for rate, score in sorted(found.items())}


def best_rates(records: Records, job: str, arms: list[str], setting: Setting) -> dict[str, float]:
    """Return the learning rate with the least score of each arm, without arms of which every trial failed."""
    if len(setting.rates[job]) == 1:
        return dict.fromkeys(arms, setting.rates[job][0])
    found = {arm: scores(records, job, arm) for arm in arms}
    return {
        arm: min(tried, key=tried.__getitem__)
        for arm, tried in found.items()
        if min(tried.values(), default=math.inf) < math.inf
    }


def trial(job: str, arm: str, rate: float) -> Record:
    """Return a job that learning rates are chosen by."""
    return {"job": job, "purpose": "trial", "arm": arm, "seed": TRIAL_SEED, "rate": rate}


def trials(job: str, arms: list[str], setting: Setting) -> list[Record]:
    """Return the jobs that the learning rates of arms are chosen by at first."""
    rates = setting.rates[job]
    return [trial(job, arm, rate) for arm in arms for rate in rates if len(rates) > 1]


def trials_beyond(records: Records, job: str, arms: list[str], setting: Setting) -> list[Record]:
    """Return the job of the next rate for each arm that did best with the highest or lowest one."""
    jobs: list[Record] = []
    for arm, best in best_rates(records, job, arms, setting).items():
        tried = list(scores(records, job, arm))
        if 1 < len(tried) < len(setting.rates[job]) + BEYOND and best in (tried[0], tried[-1]):
            jobs.append(trial(job, arm, best * 2 if best == tried[-1] else best / 2))
    return jobs


def finals(job: str, arms: list[str], setting: Setting) -> list[Record]:
    """Return the jobs of the table, without their learning rates: all seeds of some arms, the first of others."""
    of = STARTS if job == "pretrain" else ARMS
    keys = [{"job": job, "purpose": "table", "arm": arm} for arm in arms]
    seeds = {arm: setting.seeds if of[arm].every_seed else setting.seeds[:1] for arm in arms}
    return [key | {"seed": seed} for key in keys for seed in seeds[key["arm"]]]


def parts(setting: Setting) -> list[Record]:
    """Return the jobs about models of the first so many base classes."""
    key = {"job": "part", "purpose": "table", "arm": "kind", "seed": setting.seeds[0]}
    return [key | {"classes": count} for count in range(1, len(BASE) + 1)]


def fews(setting: Setting) -> list[Record]:
    """Return the jobs about few images, without their learning rates."""
    key = {"job": "few", "purpose": "table"}
    return [
        key | {"arm": arm, "seed": seed, "images": images}
        for arm in FEW_ARMS
        for seed in setting.few_seeds
        for images in FEW
    ]


def one_steps(setting: Setting) -> list[Record]:
    """Return the jobs about one step, without their learning rates."""
    return [{"job": "one step", "purpose": "table", "arm": arm, "seed": setting.seeds[0]} for arm in ONE_STEP]


def awaited(records: Records, start: Record, setting: Setting) -> bool:
    """Tell whether something that starts from this model is still to be done."""
    arms = [name for name, arm in ARMS.items() if arm.start == start["arm"]]
    every = finals("transfer", arms, setting) + [job for job in fews(setting) if job["arm"] in arms]
    jobs = [job for job in every if job["seed"] == start["seed"]]
    if start["seed"] == setting.seeds[0]:
        jobs += [*trials("transfer", arms, setting), *parts(setting)]
        jobs += [*trials("one step", list(ONE_STEP), setting), *one_steps(setting)]
    return any(records.find(job) is None for job in jobs)


def stages(records: Records, given: Given) -> Iterator[tuple[Any, list[tuple[Record, bool]]]]:
    """Yield what to do, and jobs that may go side by side; each list builds on what came before."""
    setting, first = given.setting, given.setting.seeds[0]
    yield pretrain, [(key, False) for key in trials("pretrain", list(STARTS), setting)]
    for _ in range(BEYOND):
        yield pretrain, [(key, False) for key in trials_beyond(records, "pretrain", list(STARTS), setting)]
    rates = best_rates(records, "pretrain", list(STARTS), setting)
    if lost := STARTS.keys() - rates.keys():
        raise SystemExit(
            f"every trial of {', '.join(lost)} failed, as {records.path} says; run this again to try again"
        )
    starts = [key | {"rate": rates[key["arm"]]} for key in finals("pretrain", list(STARTS), setting)]
    yield (
        pretrain,  # anew where a model has gone since, as from a folder for temporary files
        [
            (key, not (given.out / folder_of(key) / "model").is_dir() and awaited(records, key, setting))
            for key in starts
        ],
    )

    def from_start(key: Record) -> Record:
        named = {"start": folder_of(start_key(key, rates, given))} if ARMS[key["arm"]].start else {"start": ""}
        return key | named

    yield transfer, [(from_start(key), False) for key in trials("transfer", list(ARMS), setting)]
    for _ in range(BEYOND):
        beyond = trials_beyond(records, "transfer", list(ARMS), setting)
        yield transfer, [(from_start(key), False) for key in beyond]
    chosen = best_rates(records, "transfer", list(ARMS), setting)
    runs = finals("transfer", list(chosen), setting) + [key for key in fews(setting) if key["arm"] in chosen]
    yield transfer, [(from_start(key | {"rate": chosen[key["arm"]]}), False) for key in runs]

    def start_of(arm: str) -> str:
        return folder_of({"job": "pretrain", "purpose": "table", "arm": arm, "rate": rates[arm], "seed": first})

    yield part, [(key | {"rate": rates["dense"], "start": start_of("kind")}, False) for key in parts(setting)]

    def from_base(key: Record) -> Record:
        return key | {"start": start_of("kind" if key["arm"].endswith("KIND") else "dense")}

    shared = [from_base({"job": "pairs", "purpose": "table", "arm": arm, "seed": first}) for arm in ("dense", "KIND")]
    wanted = any(
        records.find(key) is None for key in [*trials("one step", list(ONE_STEP), setting), *one_steps(setting)]
    )
    yield make_pairs, [(key, wanted and not pairs_folder(given, key["arm"]).is_dir()) for key in shared]
    yield one_step, [(from_base(key), False) for key in trials("one step", list(ONE_STEP), setting)]
    for _ in range(BEYOND):
        beyond = trials_beyond(records, "one step", list(ONE_STEP), setting)
        yield one_step, [(from_base(key), False) for key in beyond]
    chosen = best_rates(records, "one step", list(ONE_STEP), setting)
    runs = [key | {"rate": chosen[key["arm"]]} for key in one_steps(setting) if key["arm"] in chosen]
    yield one_step, [(from_base(key), False) for key in runs]


def quick(setting: Setting) -> Setting:
    """Return the same with next to no training, to see that everything runs."""
    return replace(
        setting,
        steps=100,
        seeds=setting.seeds[:2],
        few_seeds=setting.seeds[:1],
        ranges=1,
        batch_size=8,
        sample_steps=2,
        rates={"pretrain": (2e-3,), "transfer": (1e-3, 2e-3), "one step": (1e-3,)},
        pairs=64,
    )


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--out", default=tempfile.gettempdir() + "/genflow-kind", help="folder for the runs")
    parser.add_argument("--results", default=str(RESULTS), help="folder for records and table")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    parser.add_argument("--quick", action="store_true", help="hardly train, to see that everything runs")
    options = parser.parse_args()
    setting = quick(SETTINGS[options.data]) if options.quick else SETTINGS[options.data]
    name = f"{setting.name}-quick" if options.quick else setting.name
    given = Given(setting, Path(options.out) / name)
    records = Records(Path(options.results) / f"kind-{name}.jsonl")
    for action, jobs in stages(records, given):
        side_by_side(records, jobs, action, given, options.processes)
    text = table(records.all(), setting.name, setting.size)
    (Path(options.results) / f"kind-{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
