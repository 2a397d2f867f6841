"""What a consistency model cannot be trained on, with or from, refused in one line; known mistakes are told."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import make_config

from genflow.build import build_denoiser, export
from genflow.cli.main import main
from genflow.config import Config, KarrasConfig, SampleConfig, UNetConfig, VEConfig
from genflow.config_files import find_recipe, load_config
from genflow.denoiser import Denoiser

SMALL = ["--backbone.width", "16", "--train.batch-size", "8", "--train.steps", "8", "--train.preview-every", "0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Models to start from and to be taught by: a fitting one, one of other images, of flow, of other classes."""
    root = tmp_path_factory.mktemp("models")
    ve = replace(
        make_config(root, UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(4,))),
        schedule=VEConfig(),
        parameterization=KarrasConfig(),
    )
    export(build_denoiser(ve, (1, 8, 8), 10), root / "edm")
    export(build_denoiser(ve, (3, 8, 8), 10), root / "colour")
    export(build_denoiser(ve, (1, 8, 8), 4), root / "four")
    export(build_denoiser(make_config(root, ve.backbone), (1, 8, 8), 10), root / "flow")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """A fresh working directory; the cache lies elsewhere."""
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(recipe: str, *pairs: tuple[str, str]) -> str:
    """A copy of a recipe in which parts of the text are others, for what only the file can say."""
    text = find_recipe(recipe).read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    Path("recipe.toml").write_text(text, encoding="utf-8")
    return "recipe.toml"


def refused(capsys, *arguments: object) -> str:
    before = set(Path().rglob("*"))
    assert main(["train", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("genflow: ")
    assert shown.err.count("\n") == 1, shown.err
    assert set(Path().rglob("*")) == before
    return shown.err


@pytest.mark.parametrize(
    ("recipe", "pairs", "said"),
    [
        ("tiny-ict", [('"VE"', '"Linear"'), ('"ConsistencyKarras"', '"Karras"')], "goes with schedule VE, not Linear"),
        ("tiny-ict", [('"VE"', '"Linear"')], "ConsistencyKarras is made for the noise levels of schedule VE"),
        ("tiny-ict", [('"ConsistencyKarras"', '"Karras"')], "nothing anchors what the model learns"),
        ("tiny-ict", [("last = 40", "last = 11")], "curriculum stuck"),
        ("tiny-ect", [('init = "runs/tiny-edm/model"\n', "")], "name it by --init"),
        ("tiny-ict", [("[0.821]", "[0.821, 1.5]")], "sample.middle must fall, from below 80"),
    ],
)
def test_parts_that_cannot_work_together_are_refused(recipe: str, pairs, said: str, capsys) -> None:
    assert said in refused(capsys, changed(recipe, *pairs), *SMALL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["tiny-ict", "--sample.middle", "0.5", "2.0"],
            "sample.middle must fall, from below 80, where sampling starts",
        ),
        (["tiny-ict", "--sample.middle", "80"], "got 80"),
        (["tiny-ict", "--sample.middle", "90", "1"], "got 90 1"),
        (["tiny-ict", "--sample.middle", "0"], "sample.middle"),
        (["tiny-ict", "--sample.middle", "1", "1"], "got 1 1"),
        (["tiny-ict", "--schedule.sigma-max", "0.5"], "from below 0.5"),
        (["tiny-rf", "--sample.middle", "1.5"], "from below 1, where"),
        (["tiny-ect", "--init", ""], "name it by --init"),
        (["tiny-ect"], "init runs/tiny-edm/model is not a folder"),
        (["tiny-cd", "--init", ""], "objective.descent.teacher runs/tiny-edm/model is not a folder"),
        (
            ["tiny-ict", "--train.steps", "2"],
            "train.steps 2 are too few for objective.levels.curriculum from 10 to 40",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: list[str], said: str, capsys) -> None:
    rest = SMALL if "--train.steps" not in arguments else [*SMALL[:4], *SMALL[6:]]
    assert said in refused(capsys, *arguments, *rest)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("nowhere", "is not a folder: give a saved model's, or hf:OWNER/NAME"),
        ("colour", "makes images (3, 8, 8) on schedule VE; the student's are (1, 8, 8) on VE"),
        ("flow", "makes images (1, 8, 8) on schedule Linear; the student's are (1, 8, 8) on VE"),
        ("four", "knows 4 classes and the data 10"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(teacher: str, said: str, models, capsys) -> None:
    student = ["tiny-cd", "--init", models / "edm", *SMALL]
    assert said in refused(capsys, *student, "--objective.descent.teacher", models / teacher)


def test_a_start_of_another_network_is_refused(models, capsys) -> None:
    assert "of its weights do not fit" in refused(capsys, "tiny-ect", "--init", models / "colour", *SMALL)


def test_a_run_with_a_pace_is_not_continued_with_another_number_of_steps(models, capsys) -> None:
    small = [*SMALL[:4], *SMALL[6:]]
    assert main(["train", "tiny-ict", *small, "--train.steps", "8"]) == 0
    capsys.readouterr()
    said = refused(capsys, "tiny-ict", *small, "--train.steps", "16")
    assert "runs/tiny-ict holds a run with another train.steps, which sets the pace of its noise levels" in said
    taught = ["tiny-cd", *small, "--init", str(models / "edm"), "--objective.descent.teacher", str(models / "edm")]
    for steps in ("1", "2"):  # all levels from the start: a run like any other
        assert main(["train", *taught, "--train.steps", steps]) == 0
    assert "going on from step 1" in capsys.readouterr().out
    assert Denoiser.from_pretrained("runs/tiny-cd/model").times == {"2": [80.0, 0.821, 0.0]}


def test_known_mistakes_are_told_a_line_each_and_trained_all_the_same(capsys) -> None:
    wrong = ["--objective.levels.law.mean", "1.1", "--optim.rule", "adam", "--optim.ema-halflife", "0"]
    wrong += ["--backbone.fourier-scale", "16", "--objective.metric.c", "0.03"]
    assert main(["train", "tiny-ict", *SMALL, *wrong]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genflow: ")]
    starts = ["sign of the mean", "c counted twice", "Fourier scale 16", "batch of 8", "optimiser", "no average"]
    told = [line.removeprefix("genflow: warning: ") for line in lines]
    assert [line.startswith(start) for line, start in zip(told, starts, strict=True)] == [True] * len(starts)


def test_what_ct_and_cd_were_published_with_is_no_mistake_of_theirs_alone() -> None:
    from genflow.config_findings import findings

    for name in ("ct-cifar10", "cd-cifar10", "ct-imagenet64"):
        old = load_config(find_recipe(name))
        assert findings(old) == []
        half = replace(old, train=replace(old.train, mixed_precision="bf16"))
        assert [line.split(":")[0] for line in findings(half)] == ["bf16"]
    new = load_config(find_recipe("ict-cifar10"))
    plain = replace(new.backbone, dropout=0.0, fourier_scale=16.0)
    half = replace(new, backbone=plain, train=replace(new.train, mixed_precision="fp16"))
    assert [line.split(":")[0] for line in findings(half)] == ["no dropout", "Fourier scale 16", "fp16"]


def test_times_between_belong_to_the_model(tmp_path) -> None:
    config = Config(
        name="m",
        out=str(tmp_path),
        backbone=UNetConfig(width=16, multipliers=(1,), blocks=1, attention=()),
        sample=SampleConfig(sampler="multistep", steps=1, middle=(5.0, 0.5)),
    )
    assert build_denoiser(config, (1, 8, 8), 0).times == {"3": [80.0, 5.0, 0.5, 0.0]}
