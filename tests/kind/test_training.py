"""Decomposed backbones in whole runs: every objective, frozen parts, restarts and processes."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from launch import together
from safetensors.torch import load_file, save_file
from small import DIT, Stopped, assert_same, image_data, make_config, stopping, tensors, with_train

from genflow import build, kind
from genflow.build import build_denoiser, build_trainer
from genflow.cli.train import check_resume
from genflow.config import (
    AveragedWeightsConfig,
    ByTeacherConfig,
    ClassLoRAConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConstantConfig,
    DataConfig,
    DiscreteVPConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    IntactConfig,
    KarrasConfig,
    KINDConfig,
    LogNormalConfig,
    NormConfig,
    OptimConfig,
    PredictNoiseConfig,
    RegressionConfig,
    SampleConfig,
    SquaredL2Config,
    SquareRootConfig,
    TransferConfig,
    TruncationConfig,
    UNetConfig,
    UShapedConfig,
    VEConfig,
    VelocityResidualConfig,
)
from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.kind.learngenes import class_parameters
from genflow.training.trainer import Trainer

KIND = KINDConfig(learngenes=0.25, tailor_rank=4)
UNET = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.2)
LORA = ClassLoRAConfig()
ICT = ConsistencyConfig(levels=GridLevelsConfig(curriculum=DoublingConfig(first=2, last=8)), label_dropout=0.3)
CT = replace(
    ICT,
    levels=GridLevelsConfig(curriculum=SquareRootConfig(last=20)),
    metric=SquaredL2Config(),
    target=AveragedWeightsConfig(rate=0.9),
)
CD = replace(CT, levels=GridLevelsConfig(curriculum=ConstantConfig(count=9)), descent=ByTeacherConfig(teacher="edm"))
EDM = {
    "schedule": VEConfig(),
    "parameterization": KarrasConfig(),
    "objective": RegressionConfig(times=LogNormalConfig()),
}
MULTISTEP = SampleConfig(sampler="multistep", steps=1)
CONSISTENCY = {"schedule": VEConfig(), "parameterization": ConsistencyKarrasConfig(), "sample": MULTISTEP}
METHODS = {
    "flow": {},
    "unet": {"backbone": UNET},
    "in parts": {"train": {"microbatch": 4, "gradient_checkpointing": True}},
    "bf16": {"train": {"mixed_precision": "bf16"}},
    "edm": EDM,
    "ddpm": {"schedule": DiscreteVPConfig(count=100), "parameterization": PredictNoiseConfig()},
    "2-rf": {
        "parameterization": KarrasConfig(conditioning="time"),
        "objective": RegressionConfig(times=UShapedConfig(), residual=VelocityResidualConfig()),
    },
    "ict": CONSISTENCY | {"objective": ICT},
    "ct": CONSISTENCY | {"objective": CT},
    "cd": CONSISTENCY | {"objective": CD},
    "ect": EDM
    | {
        "objective": ConsistencyConfig(levels=EasyLevelsConfig(stages=2), metric=NormConfig()),
        "sample": MULTISTEP,
        "init": "edm",
        "surgery": TransferConfig(trains="all"),
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "build_data", lambda config: picked(config))


def picked(config: DataConfig) -> ImageData:
    data = image_data(classes=0 if config.path == "bare" else 3)
    return data.of_classes(config.keep) if config.keep else data


def config_of(name: str = "run", *, surgery=KIND, **parts) -> Config:
    train = {"steps": 6, "checkpoint_every": 2} | parts.pop("train", {})
    parts = {"backbone": DIT, "surgery": surgery} | parts
    return replace(make_config(Path("runs"), **train), name=name, **parts)


def trainer_of(config: Config, *, stop: int | None = None) -> Trainer:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    trainer = build_trainer(config)
    if stop is not None:
        trainer.loader = stopping(trainer.loader, stop)
    return trainer


def stopped_and_resumed(config: Config, stop: int = 5) -> Trainer:
    with pytest.raises(Stopped):
        trainer_of(config, stop=stop).fit()
    resumed = trainer_of(config)
    resumed.fit()
    return resumed


def whole(config: Config) -> Trainer:
    trainer = trainer_of(config)
    trainer.fit()
    return trainer


def save_edm(name: str = "edm", *, operate: Callable | None = None, surgery=KIND) -> Denoiser:
    """Save an EDM model none of whose kernels is zero."""
    denoiser = build_denoiser(config_of(surgery=surgery, **EDM), (1, 8, 8), 3)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    if operate is not None:
        denoiser = denoiser.around(operate(denoiser.backbone))
    denoiser.eval().save_pretrained(name)
    return denoiser


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_of_every_objective_is_bitwise_the_whole_one(method) -> None:
    save_edm()
    parts = dict(METHODS[method])
    config = config_of(surgery=parts.pop("surgery", KIND), **parts)
    one = whole(replace(config, name="whole"))
    two = stopped_and_resumed(replace(config, name="cut"))
    assert_same(tensors(one), tensors(two))
    model = one.objective.denoiser.backbone
    assert isinstance(model, kind.Decomposed)
    assert all(p.grad is not None for p in class_parameters(model))
    saved = Denoiser.from_pretrained("runs/whole/model")
    assert_same(saved.state_dict(), one.ema.denoiser.state_dict())


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one_up_to_rounding(monkeypatch) -> None:
    """Compiled code is told of the gate by its inputs, and does not sort its batches, which moves dropout's masks."""
    compiling, compiled = torch.nn.Module.compile, []

    def watched(network, **_) -> None:
        compiled.append(network)
        compiling(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", watched)
    torch._dynamo.reset()
    parts = {"backbone": replace(DIT, dropout=0.0), "train": {"gradient_checkpointing": True}}
    parts |= {"optim": OptimConfig(eps=1e-2)}  # steps like gradients, whatever their size
    plain, fast = (whole(config_of(f"run-{c}", compile=c, **parts)) for c in (False, True))
    assert [type(network) for network in compiled] == [kind.Decomposed]
    fresh = trainer_of(config_of("fresh", **parts)).objective.denoiser
    sides = (plain.objective.denoiser, fast.objective.denoiser, fresh)
    for a, b, start in zip(*(side.parameters() for side in sides), strict=True):
        assert (a - b).norm() <= 1e-3 * (a - start).norm() + 1e-9


def test_kernels_without_tailors_train_save_and_resume() -> None:
    """Their tensors are empty, which optimisers, averages and files must bear."""
    config = config_of(surgery=replace(KIND, class_to_tailor=(-1, -1, -1)), optim=OptimConfig(clip=0.5))
    one, two = whole(replace(config, name="whole")), stopped_and_resumed(replace(config, name="cut"))
    assert any(v.numel() == 0 for v in one.objective.state_dict().values())
    assert_same(tensors(one), tensors(two))


def test_a_transfer_trains_tailors_and_label_rows_alone_and_outlives_its_start() -> None:
    start = save_edm("start", operate=lambda m: kind.add_tailors(kind.remove_tailors(m), 2))
    config = config_of("cut", surgery=TransferConfig(), init="start", data=DataConfig(keep=(0, 2)), **EDM)
    one = whole(replace(config, name="whole"))
    with pytest.raises(Stopped):
        trainer_of(config, stop=5).fit()
    shutil.rmtree("start")
    two = trainer_of(config)
    check_resume(config)
    with pytest.raises(ValueError, match="holds a run with another surgery"):
        check_resume(replace(config, surgery=TransferConfig(trains="all")))
    two.fit()
    assert_same(tensors(one), tensors(two))
    trained = one.objective.denoiser
    own = {id(p) for p in class_parameters(trained.backbone)}
    before = dict(start.named_parameters())
    for name, p in trained.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in own), name
    held = sum(p.numel() for group in one.optimizer.param_groups for p in group["params"])
    assert held == sum(p.numel() for p in class_parameters(trained.backbone))
    averaged = dict(one.ema.denoiser.named_parameters())
    assert all(torch.equal(p, averaged[name]) for name, p in trained.named_parameters() if id(p) not in own)


def test_a_transfer_goes_on_without_its_saved_model_while_its_start_is_there() -> None:
    save_edm("start", operate=lambda m: kind.add_tailors(kind.remove_tailors(m), 3))
    config = config_of("cut", surgery=TransferConfig(), init="start", **EDM)
    one = whole(replace(config, name="whole"))
    with pytest.raises(Stopped):
        trainer_of(config, stop=5).fit()
    shutil.rmtree("runs/cut/model")
    Path("start").rename("away")
    with pytest.raises(ValueError, match="init start is not a folder"):
        trainer_of(config)
    Path("away").rename("start")
    two = trainer_of(config)
    two.fit()
    assert_same(tensors(one), tensors(two))


def test_a_transfer_reads_the_weights_of_its_start_once(monkeypatch) -> None:
    save_edm("start")
    load, read = Denoiser.from_pretrained, []

    def watched(place, *given, **options) -> Denoiser:
        read.append(place)
        return load(place, *given, **options)

    monkeypatch.setattr(Denoiser, "from_pretrained", watched)
    trainer_of(config_of(surgery=TransferConfig(), init="start", **EDM))
    assert read == ["start"]


def test_a_transfer_of_everything_trains_everything() -> None:
    start = save_edm("start")
    trained = whole(config_of(surgery=TransferConfig(trains="all"), init="start", **EDM)).objective.denoiser
    before = dict(start.named_parameters())
    assert not any(torch.equal(p, before[name]) for name, p in trained.named_parameters())


def test_a_transfer_of_learngenes_leaves_tailors_and_label_rows() -> None:
    start = save_edm("start")
    trained = whole(config_of(surgery=TransferConfig(trains="learngenes"), init="start", **EDM)).objective.denoiser
    before, own = dict(start.named_parameters()), {id(p) for p in class_parameters(trained.backbone)}
    for name, p in trained.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) in own), name


def test_a_tailor_of_no_class_is_trained_by_dropped_labels() -> None:
    for share in (0.0, 0.5):
        config = config_of(f"run-{share}", surgery=replace(KIND, no_class="tailor"), **EDM)
        config = replace(config, objective=replace(config.objective, label_dropout=share))
        before = trainer_of(replace(config, name="start")).objective.denoiser.backbone
        trained = whole(config).objective.denoiser.backbone
        loaded = Denoiser.from_pretrained(f"runs/run-{share}/model").backbone
        assert isinstance(before, kind.Decomposed)
        assert isinstance(trained, kind.Decomposed)
        assert isinstance(loaded, kind.Decomposed)
        assert loaded.layout() == trained.layout() == before.layout()
        assert trained.gate.tailors == (0, 1, 2, 3)
        pairs = zip(trained.linears().values(), before.linears().values(), strict=True)
        assert any(not torch.equal(a.tailor_u[3], b.tailor_u[3]) for a, b in pairs) == (share > 0)


def test_classes_of_the_data_are_those_that_the_model_has_kept() -> None:
    """Of a model that was extracted from one of three, whose labels go on being 0 and 2."""
    save_edm("start", operate=lambda m: kind.extract(m, [0, 2]))
    config = config_of(surgery=TransferConfig(), init="start", data=DataConfig(keep=(1, 2)), **EDM)
    labels = trainer_of(config).loader(0).labels
    plain = picked(config.data).labels
    assert plain is not None
    assert set(labels.tolist()) == {0, 2}
    whole(config)


def test_lazy_tailors_of_absent_classes_stay_put_across_a_restart() -> None:
    """Class 2 is seen in the first two steps only."""

    def run(name: str, *, lazy: bool, cut: bool) -> list[torch.Tensor]:
        config = config_of(
            name, surgery=replace(KIND, lazy_tailors=lazy), optim=OptimConfig(weight_decay=0.1, ema_halflife=0)
        )
        seen: list[list[torch.Tensor]] = []

        def trainer(stop: int | None = None) -> Trainer:
            made = trainer_of(config, stop=stop)
            load = made.loader

            def watched(number: int):
                loaded = load(number)
                if number == 2:
                    seen.append([p[2].detach().clone() for p in class_parameters(made.objective.denoiser.backbone)])
                if number < 2:
                    return loaded
                return loaded._replace(labels=loaded.labels.clamp(max=1))

            made.loader = watched
            return made

        if cut:
            with pytest.raises(Stopped):
                trainer(stop=4).fit()
        last = trainer()
        last.fit()
        now = [p[2] for p in class_parameters(last.objective.denoiser.backbone)]
        return [(a - b).abs().max() for a, b in zip(seen[0], now, strict=True)]

    assert not any(run("lazy", lazy=True, cut=True))
    assert all(run("eager", lazy=False, cut=False))


def test_a_dense_model_is_decomposed_with_its_weights() -> None:
    dense = save_edm("dense", surgery=IntactConfig())
    denoiser = build_denoiser(config_of(init="dense", **EDM), (1, 8, 8), 3)
    assert isinstance(denoiser.backbone, kind.Decomposed)
    plan = kind.KINDConfig(class_to_tailor=(0, 1, 2), learngenes=0.25, tailor_rank=4)
    assert_same(denoiser.backbone.state_dict(), kind.decompose(dense.backbone, plan).state_dict())


@pytest.mark.parametrize("surgery", ["KIND", "Transfer", "lazy"])
def test_two_processes_hold_the_same_decomposed_weights(surgery, tmp_path) -> None:
    """Frozen parts are not reduced, and one process may have classes in its batch that another has not."""
    save_edm("start", operate=lambda m: kind.extract(kind.add_tailors(m, 1), [0, 1, 3]))
    how = {"KIND": KIND, "lazy": replace(KIND, lazy_tailors=True), "Transfer": TransferConfig()}[surgery]
    start = {"init": "start"} if surgery == "Transfer" else {}
    config = config_of(surgery=how, train={"steps": 12, "microbatch": 2, "checkpoint_every": 6}, **EDM, **start)

    def work(steps: int) -> None:
        trainer = build_trainer(with_train(config, steps=steps))
        trainer.fit()
        save_file(
            {k: v.contiguous() for k, v in tensors(trainer).items()}, tmp_path / f"{os.environ['RANK']}.safetensors"
        )

    for steps in (6, 12):  # the second goes on
        assert together(lambda steps=steps: work(steps), 2) == [0, 0]
    first, second = (load_file(tmp_path / f"{k}.safetensors") for k in range(2))
    assert_same(first, second)
    assert {float(v) for k, v in first.items() if k.endswith(".step")} == {12.0}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"surgery": TransferConfig()}, "surgery Transfer trains a decomposed model further: name it by --init"),
        *(
            (
                {"surgery": how, "init": init, "data": data},
                f"surgery {how.type} trains a part .* each class, and {said}",
            )
            for how, init in ((KIND, ""), (TransferConfig(), "kind"), (TruncationConfig(), "dense"), (LORA, "dense"))
            for data, said in (
                (DataConfig(classes=False), "data.classes = false"),
                (DataConfig(path="bare"), "the data"),
            )
        ),
        ({"surgery": replace(KIND, linears="(")}, "is no regular expression"),
        ({"surgery": replace(KIND, linears="nothing")}, "this backbone has conditioning"),
        ({"surgery": replace(KIND, class_to_tailor=(0, 1))}, "tailors of 2 classes, and the data have 3"),
        ({"surgery": replace(KIND, tailor_rank=9)}, "of rank 8 at most, got 9"),
        ({"surgery": TransferConfig(), "init": "dense"}, "is a dense model, and surgery Transfer goes on"),
        ({"init": "kind"}, "is decomposed already, and surgery KIND starts from a dense model"),
        ({"surgery": TransferConfig(), "init": "nobody"}, 'tailor of "no class", which is shared .*trains = "all"'),
        ({"surgery": IntactConfig(), "init": "kind"}, "surgery Intact starts from a dense model"),
        ({"surgery": TransferConfig(), "init": "kind", "data": DataConfig(keep=(1,))}, "has 3 classes, and .* 1: give"),
        ({"surgery": TransferConfig(), "init": "part"}, r"has 2 classes \(0, 2\), and synthetic 3: give"),
        (
            {"surgery": TransferConfig(), "init": "kind", "backbone": replace(DIT, heads=4)},
            "another network: heads is 2 there and 4 here",
        ),
        ({"surgery": TransferConfig(), "init": "kind", "backbone": replace(DIT, width=64)}, "another network"),
        (
            {"surgery": TransferConfig(), "init": "kind", "backbone": replace(DIT, depth=1)},
            r"of another backbone: 6 of its 12 layers are no nn.Linear of this one, such as blocks\.1\.attention\.k",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(parts, said) -> None:
    save_edm("dense", surgery=IntactConfig())
    save_edm("kind")
    save_edm("nobody", surgery=replace(KIND, no_class="tailor"))
    save_edm("part", operate=lambda m: kind.extract(m, [0, 2]))
    with pytest.raises(ValueError, match=said):
        trainer_of(config_of(**EDM | parts))
    assert not Path("runs").exists()
