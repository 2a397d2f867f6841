"""What can be done and may not be meant is said in one line, and only then."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small import Scale, make_config
from teachers import make_teacher

from genflow.build import export
from genflow.cli.cautions import (
    caution_of_data,
    caution_of_solver,
    caution_of_straight,
    caution_of_times,
    classes_of,
    is_of_pairs,
)
from genflow.cli.main import main
from genflow.config import Config, DataConfig, RegressionConfig, UniformConfig, UShapedConfig
from genflow.config_files import to_toml
from genflow.denoiser import Denoiser, config_file
from genflow.kind import KINDConfig, decompose
from genflow.parameterizations import ConsistencyKarras, Karras
from genflow.schedules import VE

TINY = ["--backbone.width", "16", "--train.batch-size", "8", "--train.steps", "1", "--train.preview-every", "0"]
WARNED = "solves straight flows only"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run on plain images; pairs of it with labels and without; a student of the former."""
    root = tmp_path_factory.mktemp("cautions")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", "tiny-edm", *TINY]) == 0
        for name, labels in (("pairs", "random"), ("bare", "none")):
            given = ["--num", "16", "--steps", "1", "--labels", labels, "--out", name]
            assert main(["pairs", "runs/tiny-edm", *given]) == 0
        assert main(["train", "tiny-reflow", *TINY, "--data.path", "pairs", "--init", "runs/tiny-edm"]) == 0
    return root


@pytest.fixture(autouse=True)
def here(root, monkeypatch) -> None:
    monkeypatch.chdir(root)


def run_file(folder: Path, config: Config) -> str:
    """Leave nothing of a run but its configuration."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    return str(folder / "model")


def test_straight_is_warned_of_in_many_steps_of_a_flow_that_may_be_curved(capsys) -> None:
    for sampler in ("straight", "straight_heun"):
        caution_of_straight("runs/tiny-edm", sampler, 3)
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"genflow: warning: the sampler {sampler} {WARNED}, and runs/tiny-edm is not known")
        assert said.err.count("\n") == 1
        caution_of_straight("runs/tiny-edm", sampler, 2)
    caution_of_straight("runs/tiny-edm", "euler", 64)
    for student in ("runs/tiny-reflow", "runs/tiny-reflow/model"):
        caution_of_straight(student, "straight", 64)
    assert capsys.readouterr().err == ""


def test_of_whose_training_nothing_is_told_nothing_is_known(tmp_path) -> None:
    shutil.copytree("runs/tiny-reflow/model", tmp_path / "copy")
    assert is_of_pairs("runs/tiny-reflow/model")
    assert is_of_pairs(str(tmp_path / "copy"))  # which names its teacher
    file = config_file(tmp_path / "copy")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"teacher": ""}))
    assert not is_of_pairs(str(tmp_path / "copy"))
    assert not is_of_pairs("someone/on-the-hub")
    (tmp_path / "config.toml").write_text("[optim")
    assert not is_of_pairs(str(tmp_path / "model"))
    for method, known in (("2-RF++", True), ("EDM", False)):
        (tmp_path / "copy" / "import.json").write_text(f'{{"method": "{method}"}}')
        assert is_of_pairs(str(tmp_path / "copy")) is known


def test_where_the_data_lie_elsewhere_by_now_the_configuration_tells(tmp_path) -> None:
    plain = replace(make_config(tmp_path), data=DataConfig(path="gone"))
    shaped = replace(plain, objective=RegressionConfig(times=UShapedConfig()))
    first = replace(plain, data=DataConfig(path="gone", pairs=100))
    uniform = replace(plain, objective=RegressionConfig(times=UniformConfig()))
    digits = replace(shaped, data=DataConfig(path="digits"))
    for k, (config, known) in enumerate([(shaped, True), (first, True), (uniform, False), (digits, False)]):
        assert is_of_pairs(run_file(tmp_path / str(k), config)) is known


def test_sample_and_fid_say_it_once(capsys) -> None:
    given = ["--sampler", "straight", "--num", "8"]
    assert main(["sample", "runs/tiny-edm", *given, "--steps", "4", "--out", "samples"]) == 0
    assert capsys.readouterr().err.count(WARNED) == 1
    assert main(["fid", "runs/tiny-edm", "digits", *given, "--steps", "1,4,2,3"]) == 0
    assert capsys.readouterr().err.count(WARNED) == 1
    assert main(["fid", "runs/tiny-edm", "digits", *given, "--steps", "1,2"]) == 0
    assert main(["sample", "runs/tiny-reflow", "--num", "8", "--steps", "4", "--out", "straight"]) == 0
    assert WARNED not in capsys.readouterr().err


def test_a_recipe_of_pairs_on_plain_images_trains_and_says_so(capsys) -> None:
    assert main(["train", "tiny-reflow", *TINY, "--data.path", "digits", "--init", "", "--name", "plain"]) == 0
    said = capsys.readouterr().err
    assert (
        said.count("genflow: warning: this is a recipe for pairs (objective.times is UShaped), and digits holds") == 1
    )
    assert main(["train", "tiny-reflow", *TINY, "--data.path", "pairs", "--init", "runs/tiny-edm"]) == 0
    assert main(["train", "tiny-rf", *TINY]) == 0
    assert "warning" not in capsys.readouterr().err


def test_pairs_without_labels_take_classes_away_and_it_is_said(tmp_path, capsys) -> None:
    config = replace(make_config(tmp_path), data=DataConfig(path="bare"))
    caution_of_data(config)
    said = capsys.readouterr().err
    assert said.startswith(
        "genflow: warning: the pairs of bare have no labels, so that this model gets no classes, and"
    )
    assert "their teacher has 10" in said
    caution_of_data(replace(config, init="runs/tiny-edm"))
    assert "the model of init runs/tiny-edm has 10" in capsys.readouterr().err
    for fits in (DataConfig(path="bare", classes=False), DataConfig(path="pairs"), DataConfig(path="digits")):
        caution_of_data(replace(config, data=fits))
    assert capsys.readouterr().err == ""
    assert main(["train", "tiny-edm", *TINY, "--data.path", "bare", "--name", "bare"]) == 0
    assert capsys.readouterr().err.count("have no labels") == 1


def test_classes_of_a_decomposed_teacher_are_counted_too(tmp_path, capsys) -> None:
    teacher = make_teacher(tmp_path / "dense")
    plan = KINDConfig(class_to_tailor=(0, 1, 2), linears=r"(.*\.)?(q|k|v|o)")
    export(teacher.around(decompose(teacher.backbone, plan)), tmp_path / "kind")
    given = ["--num", "4", "--steps", "1", "--labels", "none", "--out", str(tmp_path / "pairs")]
    assert main(["pairs", str(tmp_path / "kind"), *given]) == 0
    assert classes_of(str(tmp_path / "kind")) == 3
    capsys.readouterr()
    caution_of_data(replace(make_config(tmp_path), data=DataConfig(path=str(tmp_path / "pairs"))))
    assert "their teacher has 3" in capsys.readouterr().err


def test_classes_are_counted_wherever_a_model_lies() -> None:
    for place in ("runs/tiny-edm", "runs/tiny-edm/model", "runs/tiny-edm/model/denoiser"):
        assert classes_of(place) == 10
    assert classes_of("") == classes_of("hf:owner/name") == 0


def test_a_run_can_be_started_from_by_its_folder(capsys) -> None:
    for name, init in (("one", "runs/tiny-edm"), ("two", "runs/tiny-edm/model")):
        given = ["--init", init, "--name", name, "--optim.lr", "1e-9"]
        assert main(["train", "tiny-edm", *TINY, *given]) == 0
    one, two = (Path("runs") / name / "model/denoiser/diffusion_pytorch_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_flow_asked_of_a_consistency_model_is_warned_of(tmp_path, capsys) -> None:
    make_teacher(tmp_path / "ct", sampler="multistep")
    make_teacher(tmp_path / "edm")
    asked = {
        "pairs": ["--num", "4", "--steps", "1", "--out", str(tmp_path / "pairs")],
        "straightness": ["--num", "4", "--steps", "2"],
    }
    for command, given in asked.items():
        assert main([command, str(tmp_path / "ct"), *given]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genflow: ")]
        assert len(said) == 1
        assert said[0].startswith(f"genflow: warning: {tmp_path / 'ct'} is a consistency model")
    assert main(["straightness", str(tmp_path / "edm"), *asked["straightness"]]) == 0
    assert "consistency" not in capsys.readouterr().err


def test_ect_from_a_consistency_model_is_warned_of(tmp_path, capsys) -> None:
    assert main(["train", "tiny-ict", *TINY[:4], "--train.steps", "5", "--train.preview-every", "0"]) == 0
    capsys.readouterr()
    assert main(["train", "tiny-ect", *TINY[:4], "--train.steps", "8", "--init", "runs/tiny-ict/model"]) == 0
    assert "init runs/tiny-ict/model is a consistency model, and ECT starts from" in capsys.readouterr().err


def test_solvers_of_flows_are_warned_of_on_consistency_models(tmp_path, capsys) -> None:
    for name, row in (("anchored", ConsistencyKarras()), ("easy", Karras())):
        denoiser = Denoiser(Scale(), VE(), row, image_shape=(1, 8, 8), sampler="multistep", steps=1)
        for sampler, steps in (("multistep", 4), ("euler", 1)):
            caution_of_solver(name, denoiser, sampler, steps)
        assert capsys.readouterr().err == ""
        for sampler, steps in (("heun", 1), ("euler", 2), ("dpmpp_2m", 4)):
            caution_of_solver(name, denoiser, sampler, steps)
            said = capsys.readouterr().err
            assert said.startswith(
                f"genflow: warning: the sampler {sampler} follows a flow, and {name} is a consistency"
            )
            assert said.count("\n") == 1
    edm = Denoiser(Scale(), VE(), Karras(), image_shape=(1, 8, 8))
    caution_of_solver("edm", edm, "heun", 18)
    caution_of_solver("edm", edm, "multistep", 1)
    assert capsys.readouterr().err == ""
    caution_of_solver("edm", edm, "multistep", 2)
    assert "the sampler multistep is that of consistency models, and edm is none" in capsys.readouterr().err


def test_calls_that_do_nothing_are_told(capsys) -> None:
    denoiser = Denoiser(Scale(), VE(), ConsistencyKarras(), image_shape=(1, 8, 8), sampler="multistep", steps=1)
    for times in ([80.0, 0.0], [80.0, 0.003, 0.0]):
        caution_of_times("ct", denoiser, times)
    assert capsys.readouterr().err == ""
    caution_of_times("ct", denoiser, [80.0, 0.8, 0.001, 0.0])
    assert "the call at 0.001 does nothing" in capsys.readouterr().err


def test_both_commands_that_draw_say_so(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_teacher(Path("model"), shape=(1, 8, 8), classes=10, sampler="multistep")
    for command in (["sample", "model", "--num", "4"], ["fid", "model", "digits", "--num", "20"]):
        assert main([*command, "--sampler", "heun", "--steps", "1"]) == 0
        assert capsys.readouterr().err.count("the sampler heun follows a flow") == 1
