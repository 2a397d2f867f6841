"""What the evaluation of KIND computes of its runs, and what it runs when."""

import itertools
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from genflow import kind
from genflow.data.images import ImageData, load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.sources import UNIT, Samples
from genflow.nn import DiT
from genflow.parameterizations import Karras
from genflow.schedules import VE


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    import kind as bench  # pyright: ignore[reportMissingImports]

    return bench


@pytest.fixture
def tables(bench) -> ModuleType:
    import kind_table  # pyright: ignore[reportMissingImports]

    return kind_table


@pytest.fixture
def measures(bench) -> ModuleType:
    import kind_measure  # pyright: ignore[reportMissingImports]

    return kind_measure


@pytest.fixture
def jobs(bench) -> ModuleType:
    import kind_jobs  # pyright: ignore[reportMissingImports]

    return kind_jobs


def model() -> Denoiser:
    """A decomposed model of three classes, none of whose kernels is zero."""
    torch.manual_seed(3)
    network = DiT(image_size=(8, 8), in_channels=1, num_classes=3, width=16, depth=1, heads=2)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    config = kind.KINDConfig(class_to_tailor=(0, 1, 2), learngenes=0.25, tailor_rank=3)
    denoiser = Denoiser(network, VE(), Karras(), image_shape=(1, 8, 8), num_classes=3, sampler="euler", steps=2)
    return denoiser.around(kind.decompose(network, config)).eval()


def test_intervals_are_students_of_paired_differences(tables) -> None:
    """With the quantiles of a printed table: 4.303 for three pairs, 2.776 for five."""
    for values, quantile in (([1.0, 2.0, 6.0], 4.303), ([1.0, 2.0, 3.0, 4.0, 5.0], 2.776)):
        mean, low, high = tables.interval(values)
        half = quantile * np.std(values, ddof=1) / len(values) ** 0.5
        assert (mean, low, high) == pytest.approx((np.mean(values), mean - half, mean + half), rel=1e-3)
    assert tables.interval([2.0]) == (2.0, -math.inf, math.inf)
    assert tables.paired({0: 5.0, 1: 7.0, 3: 1.0}, {1: 4.0, 0: 3.0, 2: 9.0}) == [2.0, 3.0]
    found, shown = tables.ratio({0: 2.0, 1: 8.0, 2: 4.0, 5: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    half = 4.303 * math.log(2) / 3**0.5  # the deviation of the logarithms is ln 2
    assert found == pytest.approx(4.0)
    assert shown == f"4.00 x [{4 * math.exp(-half):.2f}, {4 * math.exp(half):.2f}], 3 seeds"
    assert tables.ratio({0: 2.0}, {0: 4.0}) == (0.5, "0.50 x, 1 seed")
    assert math.isnan(tables.ratio({0: 1.0}, {1: 1.0})[0])


def test_intervals_cover_as_often_as_they_say(tables) -> None:
    rng = np.random.default_rng(0)
    found = [tables.interval((1 + rng.standard_normal(3)).tolist()) for _ in range(2000)]
    assert np.mean([low <= 1 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.015)


LOSSES = [0.2, 0.25, 0.3]


def transfer(arm: str, seed: int, distances, accuracy: float = 0.5, **more: object) -> dict[str, object]:
    found = {
        share: {"distances": [d - 0.1, d + 0.1], "accuracy": accuracy, "memorising": 1.02, "losses": LOSSES}
        for share, d in zip(("2", "4", "5", "20", "100"), distances, strict=True)
    }
    key = {"job": "transfer", "purpose": "table", "arm": arm, "rate": 1e-3, "seed": seed, "trained": 1234}
    cost = {"cpu_seconds": 1800.0, "process_cpu_seconds": 2400.0, "steps": 900, "floor": 2.5, "read_right": 0.99}
    return key | {"found": found, "stored": 5678, "macs": 3_400_000} | cost | more


def pretrained(arm: str, seed: int, distance: float) -> dict[str, object]:
    key = {"job": "pretrain", "purpose": "table", "arm": arm, "rate": 1e-3, "seed": seed, "distances": [distance] * 5}
    rest = {"accuracy": 0.9, "memorising": 1.0, "losses": LOSSES, "stored": 4321, "macs": 1_200_000, "steps": 900}
    rest |= {"cpu_seconds": 900.0, "process_cpu_seconds": 900.0, "floor": 2.0, "read_right": 0.98}
    return key | rest | ({"lossless": True, "diversion": turned(0.95)} if arm == "kind" else {})


def turned(share: float) -> dict[str, object]:
    matrix = [[share if digit == gate else 0.0 for digit in range(10)] for gate in range(6)]
    return {"matrix": matrix, "follows_gate": share, "follows_label": 0.02, "learngenes": 0.17}


def rest() -> list[dict[str, object]]:
    figures = {"accuracy": 0.9, "distances": [3.0], "memorising": 1.0}
    part = {"job": "part", "purpose": "table", "arm": "kind", "seed": 0, "classes": 2, "width": 60, "floor": 3.0}
    part |= {"stored": 5000, "dense_stored": 5010, "extracted": figures, "dense": figures, "cpu_seconds": 0.0}
    one = {
        "job": "one step",
        "purpose": "table",
        "arm": "iCT, KIND",
        "seed": 0,
        "rate": 2e-3,
        "floor": 2.0,
        "read_right": 0.98,
    }
    one |= {"diversion": turned(0.8)}
    trial = {"job": "transfer", "purpose": "trial", "arm": "LoRA", "rate": 1e-3, "seed": 100}
    failed = trial | {"rate": 2e-3, "failed": "diverged"}
    return [part, one | figures | {"lossless": True, "cpu_seconds": 0.0}, trial | {"score": 7.0, "steps": 1400}, failed]


def test_the_table_says_what_was_found(tables) -> None:
    records = [pretrained("kind", seed, 3.0) for seed in (0, 1)] + [pretrained("dense", seed, 1.5) for seed in (0, 1)]
    for seed in (0, 1, 2):
        records.append(transfer("KIND", seed, (9, 6, 5, 4, 3), 0.8))
        records.append(transfer("LoRA", seed, (20, 10, 9, 5 + seed, 3), 0.6))
        records.append(transfer("SVD", seed, (11, 6.5, 6, 4, 3)))
    text = tables.table(records + rest(), "digits", 0)
    assert text.startswith("# KIND on digits\n")
    assert "over 90% | 95.0%, 2 seeds | pass |" in text
    assert "at most 1.5 x the dense network's | 2.00 x [2.00, 2.00], 2 seeds | **fail** |" in text
    assert "under 0.7 x that of LoRA | 0.60 x [0.60, 0.60], 3 seeds | pass |" in text
    assert "under 0.9 x that of SVD | 0.92 x [0.92, 0.92], 3 seeds | **fail** |" in text
    assert "bit by bit | 3 of 3 models | pass |" in text
    assert "iCT, KIND, one step: the same share over 90% | 80.0% | **fail** |" in text
    assert "2-RF++, KIND, one step: the same share over 90% | | not measured yet |" in text
    assert (
        "| kind | KIND: learngenes and a tailor for each class | 4,321 | 1.20 | 3.00, 3.00 | 90.0% | 1.00"
        " | 0.200 / 0.250 / 0.300 | 1.000 |" in text
    )
    assert "real training images score 2.500, and 99.0% of the held-out ones are read as what they are." in text
    assert (
        "| 3 | 1,234 | 5,678 | 3.40 | 20.00 | 10.00 | 9.00 | 6.00 | 3.00 | 60% | 60% | 60% | 60% | 60% | 1.02"
        " | 0.200 / 0.250 / 0.300 | 2.000 |" in text
    )
    assert "| LoRA | **+11.00 [+11.00, +11.00]** | **+4.00 [+4.00, +4.00]** |" in text
    assert "| +2.00 [-0.48, +4.48] | +0.00 [+0.00, +0.00] | **-20.0% [-20.0%, -20.0%]** |" in text
    assert "| 3 | 0% | 0% | 0% | 95% | 0% |" in text
    assert "| 2 | 3.00 | 5,000 | 3.00 | 90.0% | 60 | 5,010 | 3.00 | 90.0% |" in text
    assert "| LoRA | 1,400 | 0.001: **7.00**; 0.002: failed |" in text
    assert "All of it took 7.0 CPU-hours." in text


def test_the_table_makes_do_with_what_there_is(tables) -> None:
    assert tables.table([], "mnist5k", 16).startswith("# KIND on mnist5k at 16x16\n")
    assert tables.table([], "mnist5k", 16).count("not measured yet") == 7
    every = [pretrained("kind", 0, 3.0), pretrained("dense", 1, 1.5), transfer("KIND", 0, (9, 6, 5, 4, 3)), *rest()]
    every += [transfer("LoRA", 1, (20, 10, 9, 5, 3)), transfer("DoRA", 0, (20, 10, 9, 5, 3))]
    for some in itertools.chain.from_iterable(itertools.combinations(every, k) for k in (1, 2, 3, 9)):
        assert "nan" not in tables.table(some, "digits", 0)
    failed = {"job": "transfer", "purpose": "table", "arm": "KIND", "seed": 0, "rate": 1e-3, "failed": "diverged"}
    assert "| transfer, KIND | 0 | diverged |" in tables.table([failed], "digits", 0)


def test_fits_to_few_images_stand_beside_kinds(tables) -> None:
    def few(arm: str, seed: int, distance: float) -> dict[str, object]:
        found = {share: {"distances": [distance], "accuracy": 0.7, "memorising": 0.9} for share in ("2", "5")}
        return {"job": "few", "purpose": "table", "arm": arm, "seed": seed, "images": 5, "rate": 1e-3, "found": found}

    runs = [few("KIND", 1, 4.0), few("KIND", 0, 3.0), few("full", 0, 9.0), few("full", 1, 10.0)]
    text = tables.table(runs, "digits", 0)
    assert "| 5 | KIND | 3.00, 4.00 |  | 3.00, 4.00 |  | 70% | 0.90 |" in text
    shown = "9.00, 10.00 | **+6.00 [+6.00, +6.00]**"
    assert f"| 5 | full | {shown} | {shown} | 70% | 0.90 |" in text


def test_rates_beyond_the_first_are_tried_while_the_best_is_the_last(bench, tmp_path) -> None:
    setting, records = bench.SETTINGS["digits"], bench.Records(tmp_path / "records.jsonl")

    def beyond() -> dict[str, float]:
        return {job["arm"]: job["rate"] for job in bench.trials_beyond(records, "transfer", list(bench.ARMS), setting)}

    wanted = {"LoRA": 1e-1, "full": 2e-3, "KIND": 3e-4}  # scores grow with the distance from these
    for arm, best in wanted.items():
        for rate in setting.rates["transfer"]:
            records.add(bench.trial("transfer", arm, rate) | {"score": abs(math.log(rate / best))})
    records.add(bench.trial("transfer", "SVD", 1e-3) | {"failed": "diverged"})
    assert beyond() == {"LoRA": 8e-3, "KIND": 5e-4}
    for arm, rate in beyond().items():
        records.add(bench.trial("transfer", arm, rate) | {"score": abs(math.log(rate / wanted[arm]))})
    assert beyond() == {"LoRA": 1.6e-2, "KIND": 2.5e-4}
    records.add(bench.trial("transfer", "LoRA", 1.6e-2) | {"failed": "diverged"})
    records.add(bench.trial("transfer", "KIND", 2.5e-4) | {"score": abs(math.log(2.5e-4 / 3e-4))})
    assert beyond() == {}  # LoRA's best is no longer the last, and KIND has had two more
    assert bench.best_rates(records, "transfer", [*wanted, "SVD"], setting) == {
        "LoRA": 8e-3,
        "full": 2e-3,
        "KIND": 2.5e-4,
    }


def test_few_images_are_of_the_new_classes_and_chosen_by_the_seed(bench, jobs, tmp_path) -> None:
    given = jobs.Given(bench.SETTINGS["digits"], tmp_path)
    train = load_images("digits").images.reshape(-1, 64)
    key = {"job": "few", "purpose": "table", "arm": "KIND", "images": 5, "rate": 1e-3}
    chosen = [load_images(jobs.few(given, key | {"seed": seed})) for seed in (0, 1)]
    assert all(np.bincount(data.labels, minlength=4).tolist() == [5] * 4 for data in chosen)
    assert all((train == image).all(axis=1).any() for data in chosen for image in data.images.reshape(-1, 64))
    assert (chosen[0].images != chosen[1].images).any()
    again = jobs.few(given, key | {"seed": 0, "arm": "LoRA"})  # all arms have the same
    assert (load_images(again).images == chosen[0].images).all()


def test_what_is_done_again_is_what_others_still_need(bench, jobs, tmp_path) -> None:
    setting = bench.SETTINGS["mnist5k"]
    given, records = jobs.Given(setting, tmp_path), bench.Records(tmp_path / "records.jsonl")
    for job in (
        *bench.trials("pretrain", list(bench.STARTS), setting),
        *bench.trials("transfer", list(bench.ARMS), setting),
    ):
        records.add(job | {"score": abs(job["rate"] - 8e-3)})

    def starts() -> dict[tuple[str, int], bool]:
        listed = bench.stages(records, given)
        for _ in range(1 + bench.BEYOND):
            next(listed)
        _, keys = next(listed)
        assert {key["rate"] for key, _ in keys} == {8e-3}
        return {(key["arm"], key["seed"]): again for key, again in keys}

    everything = {("dense", s) for s in (0, 1, 2)} | {("kind", s) for s in (0, 1, 2)} | {("ungated", 0)}
    assert {key for key, again in starts().items() if again} == everything
    transfers = (*bench.finals("transfer", list(bench.ARMS), setting), *bench.fews(setting))
    one_steps = (*bench.trials("one step", list(bench.ONE_STEP), setting), *bench.one_steps(setting))
    for job in (*transfers, *bench.parts(setting), *one_steps):
        if job["arm"] != "LoRA" or job["seed"] != 1:
            records.add(job)
    assert {key for key, again in starts().items() if again} == {("dense", 1)}
    folder = jobs.folder_of({"job": "pretrain", "purpose": "table", "arm": "dense", "rate": 8e-3, "seed": 1})
    (tmp_path / folder / "model").mkdir(parents=True)
    assert not any(starts().values())


def test_every_run_is_another_folder_and_trains_nearly_as_many_numbers(bench, jobs) -> None:
    setting = bench.SETTINGS["digits"]
    runs = [
        k | {"rate": r} for k in bench.finals("transfer", list(bench.ARMS), setting) for r in setting.rates["transfer"]
    ]
    assert len(runs) == 3 * (6 * 5 + 10)
    runs += [key | {"rate": 1e-3} for key in (*bench.fews(setting), *bench.parts(setting))]
    runs += [*bench.one_steps(setting), *bench.trials("transfer", list(bench.ARMS), setting)]
    runs += [*bench.trials("pretrain", list(bench.STARTS), setting)]
    runs += [*bench.trials("one step", list(bench.ONE_STEP), setting)]
    runs += [key | {"rate": 1e-3} for key in bench.finals("pretrain", list(bench.STARTS), setting)]
    assert len({jobs.folder_of(run) for run in runs}) == len(runs)
    assert all(setting.steps * share % 100 == 0 for setting in bench.SETTINGS.values() for share in jobs.SHARES)
    from genflow.adapters import adapt

    def trained(name: str) -> int:
        dense = DiT(image_size=(8, 8), in_channels=1, num_classes=6, width=64, depth=4, heads=4)
        return sum(p.numel() for p in adapt(dense, bench.ARMS[name].surgery, 4).parameters() if p.requires_grad)

    counts = [trained(name) for name in ("LoRA per class", "LoRA", "SVD", "PiSSA", "DoRA", "LoHa", "OFT")]
    assert max(counts) < 1.05 * min(counts)


def test_measurements_are_taken_when_they_are_due(bench, jobs) -> None:
    setting = bench.SETTINGS["mnist5k"]
    given = jobs.Given(setting, Path())
    look = jobs.look_at(given, jobs.SHARES, lambda _, share: {"share": share})
    calls = [look(None) for _ in range(setting.steps // look.every)]  # pyright: ignore[reportArgumentType]
    assert set(calls) == {math.inf}  # so that none is the best
    assert look.found == {str(share): {"share": share} for share in jobs.SHARES}


def test_labels_of_samples_are_their_digits(measures) -> None:
    denoiser = model()
    samples = Samples(denoiser=denoiser, count=5, label=lambda seed: seed % 3, classes=("a", "b", "c"))
    images, labels = measures.Asked(samples, 6).unit(0)
    assert torch.equal(images, samples.unit(0)[0])
    assert labels.tolist() == [6 + k % 3 for k in range(UNIT)]


def test_what_extraction_loses_is_seen(measures, monkeypatch) -> None:
    denoiser = model()
    assert measures.extraction_is_lossless(denoiser, batch=3)
    real = kind.extract

    def careless(network, chosen):
        small = real(network, chosen)
        if tuple(chosen) == (0, 2):
            next(iter(small.linears().values())).learngene_v.data[0, 0] += 1e-3
        return small

    monkeypatch.setattr(kind, "extract", careless)
    assert not measures.extraction_is_lossless(denoiser, batch=3)


def test_the_loss_is_the_one_that_is_trained(measures) -> None:
    """A network that returns 0 has the mean square of its targets, which are of variance 1 for data of variance 1/4."""

    class Silent(nn.Module):
        def forward(self, x, c_noise, y, s):
            return torch.zeros_like(x)

    rng = np.random.default_rng(0)
    images = np.where(rng.random((400, 1, 8, 8)) < 0.5, 64, 191).astype(np.uint8)  # -0.5 and 0.5
    data = ImageData(images, np.zeros(400, dtype=np.int64), ("a",), "made")
    judge = measures.Judge(data=data, first=0, network=None, reference=None, beside=None)
    denoiser = Denoiser(Silent(), VE(), Karras(), image_shape=(1, 8, 8), num_classes=1)
    assert judge.losses(denoiser) == pytest.approx([1, 1, 1], abs=0.03)
    assert judge.losses(denoiser) == judge.losses(denoiser)


def test_a_dense_network_of_as_many_parameters_is_found(bench, jobs) -> None:
    given = jobs.Given(bench.SETTINGS["digits"], Path())
    dense = DiT(image_size=(8, 8), in_channels=1, num_classes=2, width=52, depth=4, heads=4)
    for beside in (-100, 0, 100):
        assert jobs.width_of(given, jobs.parameters(dense) + beside, 2) == 52


def test_random_learngenes_keep_their_sizes(jobs) -> None:
    denoiser = model()
    ours, random = (jobs.grown(denoiser, 1, random=flag).backbone for flag in (False, True))
    for mine, drawn in zip(ours.linears().values(), random.linears().values(), strict=True):
        assert torch.equal(mine.tailor_u, drawn.tailor_u)
        assert torch.equal(mine.learngene_sigma, drawn.learngene_sigma)
        for name, dim in (("learngene_u", 0), ("learngene_v", 1)):
            one, other = getattr(mine, name), getattr(drawn, name)
            torch.testing.assert_close(other.norm(dim=dim), one.norm(dim=dim))
            assert (one - other).abs().max() > 0.05
    assert ours.gate.num_classes == 4
