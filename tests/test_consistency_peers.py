"""What public programs of consistency training are compared by is what they compute, and the comparison's report."""

import functools
import itertools
import math
import operator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.nn.unet import UNet
from genflow.objectives.base import Batch
from genflow.parameterizations import ConsistencyKarras
from genflow.sampling.generate import generate
from genflow.schedules import VE

TOTAL = 80  # steps, of which every ten have twice as many levels


@pytest.fixture
def consistency(monkeypatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    import consistency  # pyright: ignore[reportMissingImports]

    return consistency


@pytest.fixture
def peers(consistency) -> ModuleType:
    import consistency_peers  # pyright: ignore[reportMissingImports]

    return consistency_peers


@pytest.fixture
def denoiser() -> Denoiser:
    """A network whose output is not 0, in training mode, with dropout."""
    torch.manual_seed(3)
    net = UNet(image_size=(8, 8), in_channels=1, num_classes=3, width=16, multipliers=(1, 2), blocks=1, dropout=0.3)
    for weight in net.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return Denoiser(net, VE(), ConsistencyKarras(), image_shape=(1, 8, 8), num_classes=3).train()


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(5)
    x, y = torch.rand(16, 1, 8, 8) * 2 - 1, torch.arange(16) % 3
    return Batch(x=x, y=y, noise=torch.randn_like(x), index=torch.arange(16), u=torch.linspace(0.01, 0.99, 16))


def levels(u: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The noise levels of teacher and student, (B, 1, 1, 1), at ranks u of the law of the teacher's."""
    n = min(10 * 2 ** (step // (TOTAL // 8)), 1280) + 1
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (0.002 ** (1 / 7) + ramp * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    z = torch.erf((sigmas.log() + 1.1) / (2 * math.sqrt(2)))
    law = ((z[1:] - z[:-1]) / (z[-1] - z[0])).cumsum(0)
    i = (law[None] <= u[:, None].double()).sum(dim=1)
    return sigmas[i].view(-1, 1, 1, 1).float(), sigmas[i + 1].view(-1, 1, 1, 1).float()


def huber(student: Tensor, teacher: Tensor, low: Tensor, high: Tensor) -> Tensor:
    c = 0.00054 * 8  # the root of 64 values
    return (((student - teacher) ** 2 + c**2).sqrt() - c) / (high - low)


@pytest.mark.parametrize("step", [0, 25, 79])
def test_the_loss_of_diffusers_example(step: int, peers, denoiser, batch) -> None:
    low, high = levels(batch.u, step)

    def f(sigma: Tensor) -> Tensor:
        x_t = batch.x + sigma * batch.noise
        told = 1000 * 0.25 * torch.log(sigma.flatten() + 1e-44)
        raw = denoiser.backbone(x_t / (sigma**2 + 0.5**2), told, batch.y, None)
        return 0.5**2 / (sigma**2 + 0.5**2) * x_t + sigma / (sigma**2 + 0.5**2) ** 0.5 * raw

    torch.manual_seed(7)
    state = torch.get_rng_state()
    student = f(high)
    torch.set_rng_state(state)
    theirs = huber(student, f(low).detach(), low, high).mean()
    torch.manual_seed(7)
    ours = peers.diffusers_objective(denoiser, TOTAL)(batch, step)
    assert ours.shape == (16,)
    assert_equal(ours.mean(), theirs, denoiser)


@pytest.mark.parametrize("step", [0, 25, 79])
def test_the_loss_of_kinyugos_library(step: int, peers, denoiser, batch) -> None:
    low, high = levels(batch.u, step)

    def f(sigma: Tensor) -> Tensor:
        x_t = batch.x + sigma * batch.noise
        c_skip = 0.5**2 / ((sigma - 0.002) ** 2 + 0.5**2)
        c_out = 0.5 * (sigma - 0.002) / (0.5**2 + sigma**2) ** 0.5
        return c_skip * x_t + c_out * denoiser.backbone(x_t, sigma.flatten(), batch.y, None)

    torch.manual_seed(7)
    teacher = f(low).detach()  # which draws its masks first here, and second there
    theirs = huber(f(high), teacher, low, high).mean()
    torch.manual_seed(7)
    ours = peers.kinyugo_objective(denoiser, TOTAL)(batch, step)
    assert_equal(ours.mean(), theirs, denoiser)


def assert_equal(ours: Tensor, theirs: Tensor, denoiser: Denoiser) -> None:
    """Values and gradients, but for the rounding of single precision, which small gaps enlarge."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    for mine, its in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        assert (mine - its).norm() <= 1e-3 * its.norm() + 1e-6


@pytest.mark.parametrize("index", [0, 10, 25, 38])
def test_samples_of_diffusers_are_those_of_its_scheduler(index: int, peers, denoiser) -> None:
    denoiser.eval()
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(timesteps=[index])
    sigma, t = scheduler.sigmas[0], scheduler.timesteps[0]
    x, y = sigma * torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    with torch.no_grad():
        raw = denoiser.backbone(scheduler.scale_model_input(x, t), t.float().expand(4), y, None)
        ours = peers.as_diffusers_samples(denoiser).denoise(x, sigma.double(), y)
    theirs = scheduler.step(raw, t, x, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_peers_read_one_network_in_their_own_way(peers, denoiser) -> None:
    objectives = [make(denoiser, TOTAL) for make in (peers.diffusers_objective, peers.kinyugo_objective)]
    readings = [objective.denoiser for objective in objectives]
    readings.append(peers.as_diffusers_samples(readings[0]))
    assert all(reading.backbone is denoiser.backbone for reading in readings)
    assert isinstance(denoiser.parameterization, ConsistencyKarras)
    x, y = 80 * torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    with torch.no_grad():
        seen = [d.eval().denoise(x, torch.tensor(80.0), y) for d in (denoiser, *readings)]
    assert all((a - b).abs().mean() > 0.01 for a, b in itertools.combinations(seen, 2))
    with pytest.raises(ValueError, match="unknown parameterization"):  # rather than be misread
        Denoiser.from_config(dict(readings[0].config))


@pytest.mark.parametrize("name", ["iCT", "diffusers", "Kinyugo"])
def test_an_arm_trains_and_samples(name: str, consistency, tmp_path) -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    arm = consistency.ARMS[name]
    setting = replace(consistency.SETTINGS["digits"], width=8, batch_size=8, steps=8, trial_steps=8)
    key = {"purpose": "table", "arm": name, "trial": 0, "seed": 0}
    config = consistency.base(consistency.Given(setting, tmp_path), "tiny-ict", key, 8)
    config = replace(arm.config(config, arm.trials[0], ""), train=replace(config.train, steps=8, evaluate_every=0))
    trainer = consistency.trainer_of(config, arm)
    before = [p.clone() for p in trainer.objective.denoiser.parameters()]
    trainer.fit()
    assert any((p != q).any() for p, q in zip(trainer.objective.denoiser.parameters(), before, strict=True))
    sampled = arm.sampled(trainer.ema.denoiser.eval())
    for steps in (1, 2):
        images = generate(sampled, [0, 1], labels=[0, 1], sampler="multistep", steps=steps, output="float")
        assert images.shape == (2, 1, 8, 8)
        assert images.isfinite().all()
    assert sampled.times["2"] == [80.0, 0.821, 0.0]


def test_edms_are_made_again_only_for_runs_that_are_missing(consistency, tmp_path) -> None:
    records = consistency.Records(tmp_path / "records.jsonl")
    given = consistency.Given(consistency.SETTINGS["digits"], tmp_path)

    def again() -> set[tuple[str, int]]:
        _, jobs = next(consistency.stages(records, given))
        return {(key["arm"], key["seed"]) for key, lost in jobs if lost}

    assert len(again()) == 6
    for name in consistency.ARMS:
        for job in consistency.trials_of(name, given.setting):
            records.add(job | {"distance": 1.0})
    for seed, name in itertools.product((0, 1), consistency.ARMS):
        records.add({"purpose": "table", "arm": name, "trial": 0, "seed": seed})
    assert again() == {("edm-0.5", 2), ("edm-0.9", 2)}
    (tmp_path / "edm-edm-0.9-0-2" / "model").mkdir(parents=True)
    assert again() == {("edm-0.5", 2)}


def run(arm: str, seed: int, one: float, two: float, **more: object) -> dict[str, object]:
    distances = {"1": [one - 0.1, one, one, one, one + 0.1], "2": [two] * 5}
    given = {"purpose": "table", "arm": arm, "trial": 0, "seed": seed, "distances": distances, "steps": 100}
    given |= {"curve": [9.0, 8.0, 7.0, 6.0, one], "memorising": 1.04, "accuracy": 0.987}
    return given | {"cpu_seconds": 1800.0, "measured_cpu_seconds": 600.0} | more


def edm(seed: int, share: str = "1") -> dict[str, object]:
    key = {"purpose": "edm", "arm": f"edm-{share}", "trial": 0, "seed": seed}
    return key | {"distances": [2.0 + seed] * 5, "floor": 1.5, "cpu_seconds": 1200.0, "steps": 100}


def tried(arm: str, trial: int, distance: float) -> dict[str, object]:
    key = {"purpose": "tuning", "arm": arm, "trial": trial, "seed": 100}
    return key | {"distance": distance, "cpu_seconds": 0.0, "measured_cpu_seconds": 0.0, "steps": 50}


@pytest.fixture
def table(consistency):
    return consistency.table


def test_the_table_says_what_was_found(table) -> None:
    records = [edm(0), edm(1), edm(0, "0.5"), tried("CT", 1, 33.0), tried("CT", 0, 22.0), tried("ECT", 2, 4.0)]
    for seed in (0, 1):
        records += [run("iCT", seed, 4.0 + seed, 3.0), run("CT", seed, 16.0, 20.0), run("L2", seed, 8.0, 6.0)]
        records += [run("CT perceptual", seed, 15.0, 10.0), run("ECT tenth", seed, 6.75, 5.0)]
        records += [run("ECT tenth, again", seed, 13.5, 5.0)]
    text = table(records, "digits", 0)
    assert text.startswith("# Consistency models on digits\n")
    assert "**2.50** (by seed 2.00, 3.00)" in text
    assert "score: 1.500." in text
    assert "| iCT | iCT | 4.00, 5.00 | **4.50** | 3.00 | 1.04 | 98.7% |" in text
    assert "| L2 | iCT with squared L2 | 1.80 | 1.60 to 2.00 | 2.23 | 2.00 |" in text
    assert "at most the better CT's / 3.07 | / 3.33 (CT perceptual) | met |" in text
    assert "better in two steps than in one | 0.67 x, and below 1 in 5 of 6 arms | met |" in text
    first, again = "ECT tenth 1.52 x (1.35 to 1.69 over seeds)", "ECT tenth, again 3.04 x (2.70 to 3.38 over seeds)"
    assert f"at most 1.3 x iCT | {first}; {again} | missed |" in text
    assert "| iCT | 9.00 | 8.00 | 7.00 | 6.00 | 4.50 |" in text
    assert "| CT | 0.002, 10 levels, mu 0.5: **22.00**; 0.002, 40 levels: 33.00 |" in text
    assert "| ECT | 0.001, 1 stage: **4.00** |" in text
    assert "All of it took 9.0 CPU-hours." in text


def test_runs_that_failed_are_told_and_never_chosen(consistency, table, tmp_path) -> None:
    failed = {"purpose": "tuning", "arm": "iCT", "trial": 0, "seed": 100, "failed": "diverged"}
    other = [tried("iCT", 1, math.nan), tried("iCT", 2, 5.0), tried("iCT", 3, 6.0)]
    records = consistency.Records(tmp_path / "records.jsonl")
    for record in [failed, *other]:
        records.add(record)
    assert consistency.ranked(records, "iCT")[:2] == [2, 3]
    assert "0.0005, 160 levels: failed" in table(records.all(), "digits", 0)
    assert "failed" not in table([{**failed, "purpose": "table"}], "digits", 0)


@pytest.mark.slow
def test_a_job_that_raises_is_recorded_and_the_others_are_done(consistency, tmp_path) -> None:
    from study import side_by_side  # pyright: ignore[reportMissingImports]

    records = consistency.Records(tmp_path / "records.jsonl")
    jobs = [({"purpose": name}, False) for name in ("first", "second")]
    side_by_side(records, jobs, operator.getitem, {}, 1)  # no key is found in nothing
    assert [record["purpose"] for record in records.all()] == ["first", "second"]
    assert all("unhashable" in record["failed"] for record in records.all())
    side_by_side(records, [(jobs[1][0], False)], operator.or_, {"found": 3}, 1)  # by another command it is tried again
    assert [record.get("found") for record in records.all()] == [None, 3]
    assert "failed" not in records.all()[1]
    assert records.all()[1]["process_cpu_seconds"] > 0
    side_by_side(records, [(jobs[1][0], False)], operator.or_, {"found": 4}, 1)  # what is there is left
    assert records.all()[1]["found"] == 3


def test_nothing_is_recorded_when_a_process_is_killed(consistency, tmp_path) -> None:
    from study import side_by_side  # pyright: ignore[reportMissingImports]

    records = consistency.Records(tmp_path / "records.jsonl")
    killed = functools.partial(exec, "import os; os._exit(1)")
    with pytest.raises(SystemExit, match="run this again"):
        side_by_side(records, [({"purpose": "first"}, False), ({"purpose": "second"}, False)], killed, {}, 1)
    assert records.all() == []


def test_the_table_makes_do_with_what_there_is(table) -> None:
    assert table([], "mnist5k", 16).startswith("# Consistency models on mnist5k at 16x16\n")
    assert table([], "mnist5k", 16).count("not measured yet") == 3
    text = table([run("iCT", 0, 4.0, 4.5, curve=[7.0, 4.0])], "digits", 0)
    assert "1.12 x, and below 1 in 0 of 1 arms | missed |" in text
    assert "| iCT | 7.00 | 7.00 | 4.00 | 4.00 | 4.00 |" in text
    assert text.count("not measured yet") == 2
    for missing in (
        table([run("CT", 1, 4.0, 4.5), run("iCT", 0, 4.0, 4.5)], "digits", 0),
        table([edm(1)], "digits", 0),
    ):
        assert "over seeds" not in missing  # of a comparison
    every = [
        edm(0),
        tried("iCT", 0, 3.0),
        run("iCT", 0, 4.0, 3.0),
        run("CT", 0, 8.0, 7.0),
        run("Kinyugo", 0, 99.0, 98.0),
    ]
    for some in itertools.chain.from_iterable(itertools.combinations(every, k) for k in range(6)):
        assert "nan" not in table(some, "digits", 0)
