"""``genflow kind``: what it writes are models like any other, and what cannot be is one line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import DIT, UNET, assert_same, make_config

from genflow import kind
from genflow.build import build_denoiser, export, preview
from genflow.build_surgery import to_save
from genflow.card_method import method
from genflow.cli.cautions import classes_of, told_by
from genflow.cli.main import main
from genflow.config import (
    ClassLoRAConfig,
    DataConfig,
    IntactConfig,
    KarrasConfig,
    KINDConfig,
    LoRAConfig,
    SampleConfig,
    TransferConfig,
    TruncationConfig,
    VEConfig,
)
from genflow.config_files import to_toml
from genflow.data.images import load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.extraction import AskedClass, pass_through
from genflow.evaluation.features import load_features
from genflow.evaluation.protocol import load_results
from genflow.evaluation.sources import FoundImages
from genflow.nn import DiT
from genflow.pictures import read_image
from genflow.pipeline import GenflowPipeline
from genflow.sampling.generate import generate
from genflow.schedules import VE

KIND = KINDConfig(learngenes=0.25, tailor_rank=4)
OTHERS = "classes are matched by their order alone"
EDM = {"schedule": VEConfig(), "parameterization": KarrasConfig(), "sample": SampleConfig(steps=2)}


def save(folder: Path, *, classes: int = 4, surgery=KIND, backbone=DIT) -> Denoiser:
    """Save a run's folder with a model none of whose kernels is zero."""
    config = replace(make_config(folder.parent, backbone), name=folder.name, surgery=surgery, **EDM)
    denoiser = build_denoiser(config, (1, 8, 8), classes)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn_like(p))
    export(denoiser.eval(), folder / "model")
    (folder / "config.toml").write_text(to_toml(config))
    return denoiser


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def whole() -> Denoiser:
    """The model of runs/whole, of four classes."""
    return save(Path("runs/whole"))


def run(*command: str) -> None:
    assert main(["kind", *command]) == 0


def refused(capsys, *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("genflow: ")
    assert said.err.count("\n") == 1
    return said.err


def drawn(denoiser: Denoiser, labels: list[int]) -> torch.Tensor:
    return generate(denoiser, range(len(labels)), labels=labels, output="float")


def test_an_extracted_model_draws_what_the_whole_draws_and_by_default_its_own_classes(whole, capsys) -> None:
    run("extract", "runs/whole", "--classes", "3,1", "-o", "small")
    said = capsys.readouterr().out
    assert said.startswith("small: 2 classes (1, 3) of 4, ")
    assert "next: genflow sample small" in said
    small = Denoiser.from_pretrained("small")
    assert small.classes == (1, 3)
    assert torch.equal(drawn(small, [1, 3, 4, 3]), drawn(whole, [1, 3, 4, 3]))
    assert main(["sample", "small", "--num", "4", "--steps", "1", "--out", "made"]) == 0
    assert json.loads(Path("made/samples.json").read_text())["labels"] == [1, 3]
    images = GenflowPipeline.from_pretrained("small")(batch_size=2, class_labels=[1, 3], output_type="pt").images
    assert images.shape == (2, 1, 8, 8)
    assert preview(small).shape[2] == preview(save(Path("runs/two"), classes=2)).shape[2]
    assert classes_of("small") == 4
    assert told_by("small")["network"]["arguments"]["network"]["class"] == "DiT"


def test_a_class_that_is_gone_is_refused_in_one_line_before_anything_is_written(whole, capsys) -> None:
    run("extract", "runs/whole", "--classes", "1,3", "-o", "small")
    before = sorted(Path().rglob("*"))
    for command in (
        ["sample", "small", "--labels", "3", "0", "--num", "1", "--out", "made"],
        ["pairs", "small", "--labels", "3", "0", "--num", "1", "--out", "pairs"],
    ):
        said = refused(capsys, *command)
        assert "label 0 is out of range: this model has the classes 1, 3 (4 means none); others were left out" in said
    said = refused(capsys, "pairs", "small", "--num", "1", "--out", "pairs")
    assert "give --labels 1 3" in said
    assert sorted(Path().rglob("*")) == before


def test_parts_put_together_are_the_model_that_they_were(whole) -> None:
    run("extract", "runs/whole", "--classes", "2,0", "-o", "one")
    run("extract", "runs/whole", "--classes", "1,3", "-o", "two")
    run("recombine", "two", "one", "-o", "again")
    again = Denoiser.from_pretrained("again")
    assert_same(again.state_dict(), whole.state_dict())
    assert again.config["network"] == whole.config["network"]


def test_a_truncated_model_has_no_more_parameters_than_asked_for(whole) -> None:
    counts = []
    for k, most in enumerate((33_000, 36_000)):
        run("extract", "runs/whole", "--classes", "1", "--max-params", str(most), "-o", f"small{k}")
        counts.append(sum(p.numel() for p in Denoiser.from_pretrained(f"small{k}").parameters()))
    assert 32_800 < counts[0] <= 33_000 < 35_800 < counts[1] <= 36_000


@pytest.mark.parametrize("backbone", [DIT, UNET], ids=["dit", "unet"])
def test_a_merged_model_is_the_dense_one_of_its_class(backbone) -> None:
    whole = save(Path("runs/whole"), backbone=backbone)
    run("merge", "runs/whole", "--label", "2", "-o", "dense")
    dense = Denoiser.from_pretrained("dense")
    plain = save(Path("runs/plain"), classes=1, surgery=IntactConfig(), backbone=backbone)
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert [type(m) for m in dense.modules()] == [type(m) for m in plain.modules()]
    assert (dense.num_classes, dense.classes) == (1, (0,))
    torch.testing.assert_close(drawn(dense, [0] * 3), drawn(whole, [2] * 3), rtol=1e-3, atol=1e-4)
    run("extract", "runs/whole", "--classes", "1,2", "-o", "small")
    run("merge", "small", "--label", "2", "-o", "dense2")
    assert_same(Denoiser.from_pretrained("dense2").state_dict(), dense.state_dict())


def test_grown_models_keep_their_learngenes_and_get_tailors_of_a_seed(whole) -> None:
    run("grow", "runs/whole", "--classes", "2", "-o", "more")
    run("grow", "runs/whole", "--classes", "2", "-o", "same")
    run("grow", "runs/whole", "--classes", "2", "--seed", "1", "-o", "other")
    run("grow", "runs/whole", "--classes", "2", "--rank", "3", "--drop", "--init", "silent", "-o", "new")
    more, same, other, new = (Denoiser.from_pretrained(name) for name in ("more", "same", "other", "new"))
    assert (more.classes, new.classes, new.num_classes) == ((*range(6),), (0, 1), 2)
    assert torch.equal(drawn(more, [0, 1, 2, 3]), drawn(whole, [0, 1, 2, 3]))
    assert_same(same.state_dict(), more.state_dict())
    assert not torch.equal(drawn(other, [4, 5]), drawn(more, [4, 5]))
    torch.testing.assert_close(drawn(new, [0, 1]), drawn(whole, [4, 4]))  # silent ones are no class
    assert {k for _, k in new.backbone.layout().ranks.values()} == {3}
    run("grow", "runs/whole", "--classes", "2", "--scale", "0.9", "-o", "loud")
    loud = Denoiser.from_pretrained("loud").backbone
    for name, linear in loud.linears().items():  # three times the default
        torch.testing.assert_close(linear.tailor_sigma[4:], 3 * more.backbone.linears()[name].tailor_sigma[4:])


def test_info_counts_what_the_library_counts(whole, capsys) -> None:
    run("info", "runs/whole")
    said = capsys.readouterr().out
    assert said.startswith("runs/whole: 4 classes (0, 1, 2, 3); 12 kernels of 8 learngenes and 4 tailors of rank 4\n")
    found = kind.info(whole.backbone, (1, 8, 8))
    for name, cost in (("tailors", found.tailors), ("label rows", found.rows), ("total", found.total)):
        assert re.search(rf"^{name} +{cost.parameters:,} +{cost.macs:,} +{cost.stored:,}$", said, re.MULTILINE)
    one = kind.extract(whole.backbone, [0])
    assert re.search(rf"^class 0 alone +{sum(p.numel() for p in one.parameters()):,} ", said, re.MULTILINE)
    none = kind.decompose(kind.merge(whole.backbone, 0), kind.KINDConfig(class_to_tailor=(-1, 3, 3, 3)))
    export(whole.around(none), Path("untailored"))
    run("info", "untailored")
    assert "\nclass 1 alone " in capsys.readouterr().out  # the first that has a tailor
    away = max(kind.departures(whole.backbone).values(), key=lambda d: d.u)
    assert f"{away.u:.3g}" in said


def test_learngenes_are_orthonormal_at_the_start() -> None:
    backbone = DiT(image_size=(8, 8), in_channels=1, num_classes=2, width=32, depth=1, heads=2)
    model = kind.decompose(backbone, kind.KINDConfig(class_to_tailor=(0, 1)))
    assert all(max(d.u, d.v) < 1e-5 for d in kind.departures(model).values())
    with torch.no_grad():
        linear = next(iter(model.linears().values()))
        linear.learngene_u[:, 0] *= 2
    assert next(iter(kind.departures(model).values())).u == pytest.approx(3, abs=1e-4)


def test_figures_are_of_the_classes_that_a_model_has(whole, capsys) -> None:
    """Digits 1 and 3 stand for the first and the second class, whatever the model calls them."""
    run("extract", "runs/whole", "--classes", "2,3", "-o", "small")
    said = refused(capsys, "fid", "small", "digits", "--num", "8", "--steps", "1")
    assert "the model has 2 classes (labels 2, 3), digits-test has 10" in said
    assert "name by --data.keep the classes of the reference that the model's are" in said
    assert main(["fid", "small", "digits", "--num", "70", "--steps", "1", "--data.keep", "1", "3"]) == 0
    said = capsys.readouterr().out
    assert "digits-test, classes 1 3" in said
    assert "warning: the model has the labels 2, 3 of 4, and the reference is of the classes 1, 3: classes are" in said
    assert main(["fid", "small", "digits", "--num", "70", "--steps", "1", "--data.keep", "2", "3"]) == 0
    assert OTHERS not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "given", "said"),
    [
        ("digits", [], ""),
        ("digits", ["--data.keep", "9", "8", "6", "4"], ""),
        ("digits", ["--data.keep", "1", "2", "3", "4"], "the reference is of the classes 1, 2, 3, 4: "),
        ("own.npz", [], ""),
        ("other.npz", [], "the reference is of the classes 1, 2, 3, 4: "),
        ("all.npz", [], "the reference is of all classes: "),
    ],
)
def test_a_run_on_some_classes_and_a_reference_of_others_are_told_apart(reference, given, said, whole, capsys) -> None:
    config = replace(make_config(Path("runs"), DIT), name="whole", data=DataConfig(path="digits", keep=(4, 6, 8, 9)))
    Path("runs/whole/config.toml").write_text(to_toml(config))
    kept = {"own.npz": ["4", "6", "8", "9"], "other.npz": ["1", "2", "3", "4"]}
    if reference.endswith(".npz"):
        chosen = ["--data.keep", *kept[reference]] if reference in kept else []
        assert main(["stats", "digits", *chosen, "-o", reference]) == 0
    capsys.readouterr()
    assert main(["fid", "runs/whole", reference, "--num", "70", "--steps", "1", *given, "--out", "result.json"]) == 0
    assert capsys.readouterr().out.count(OTHERS) == bool(said)
    (result,) = load_results(Path("result.json"))
    told = [note for note in result.notes if OTHERS in note]
    assert len(told) == bool(said)
    assert all(f"trained on the classes 4, 6, 8, 9 of digits, and {said}" in note for note in told)


def test_swapped_gates_are_drawn_and_read_as_the_digits_that_classes_are(whole, capsys) -> None:
    run("extract", "runs/whole", "--classes", "0,2,3", "-o", "small")
    run("draw", "small", "-o", "plain.png", "--num", "2", "--steps", "1")
    assert "no classifier reads these images, and only the picture is made" in capsys.readouterr().out
    given = ["--read-as", "digits", "--keep", "9", "5", "7", "--classes", "3,0", "--num", "2", "--steps", "1"]
    run("draw", "small", "-o", "read.png", "--out", "read.json", *given)
    said = capsys.readouterr().out
    assert re.search(r"^gate +label 7 +label 9 ", said, re.MULTILINE)  # 0, 2, 3 are 9, 5, 7
    assert "small: 2 classes (3, 0) of 3" in said
    assert said.endswith("look at read.png\n")
    written = json.loads(Path("read.json").read_text())
    assert (written["labels"], written["gates"]) == ([3, 0], [[3], [0]])
    assert (written["meant"], written["steps"], written["num"]) == ({"0": 9, "2": 5, "3": 7}, 1, 2)
    shapes = [read_image(Path(name)).shape for name in ("plain.png", "read.png")]
    assert all(height > 300 for _, height, _ in shapes)
    (Path("runs/whole/config.toml")).write_text(
        to_toml(
            replace(make_config(Path("runs"), DIT), name="whole", data=DataConfig(path="digits", keep=(4, 6, 8, 9)))
        )
    )
    run("draw", "runs/whole", "-o", "run.png", "--out", "run.json", "--num", "1", "--steps", "1")
    assert json.loads(Path("run.json").read_text())["meant"] == {"0": 4, "1": 6, "2": 8, "3": 9}


def test_of_a_model_with_one_gate_is_drawn_what_there_is(capsys) -> None:
    save(Path("runs/one"), surgery=replace(KIND, class_to_tailor=(5,) * 4))
    given = ["--steps", "1", "--read-as", "digits", "--keep", "1", "2", "3", "4"]
    run("draw", "runs/one", "-o", "one.png", *given)
    said = capsys.readouterr().out
    assert said == (
        "there is one gate for these classes and nothing to swap, and only the picture is made\nlook at one.png\n"
    )
    assert read_image(Path("one.png")).shape[1] > 250
    said = refused(capsys, "kind", "draw", "runs/one", "-o", "two.png", "--out", "two.json", *given)
    assert "there is one gate for 4 classes (0, 1, 2, 3) and nothing to swap, so there are no shares for --out" in said
    assert not Path("two.png").exists()


def test_a_card_says_what_a_model_is_made_of_and_which_classes_it_has(whole) -> None:
    run("extract", "runs/whole", "--classes", "1,3", "-o", "small")
    for model in ("small", "runs/whole"):
        assert main(["push", model, "--repo", "me/mine", "--dry-run", "--out", f"hub/{model}"]) == 0
    small, full = (Path(f"hub/{model}/README.md").read_text() for model in ("small", "runs/whole"))
    assert "2 tailors of single classes" in small
    assert "of 4 classes it has 1, 3. `genflow kind` takes it apart" in small
    assert "labels=[[1, 3][k % 2] for k in seeds]" in small
    assert "4 tailors of single classes" in full
    assert "labels=[k % 4 for k in seeds]" in full
    for text in (small, full):
        assert "`Decomposed(DiT(" in text
        assert "Its kernels are decomposed by KIND (arXiv 2408.07337) into learngenes" in text


@pytest.mark.parametrize(
    ("class_to_tailor", "said"),
    [
        ((0, 1, 2, 3), "4 tailors of single classes (18,624). `"),
        ((5, 5, 1, -1), "2 tailors of the classes {2}, {0, 1} (9,312), none of them of {3}. `"),
        ((-1,) * 4, "0 tailors of single classes (0), none of them of {0, 1, 2, 3}. `"),
        ((0,) + (1,) * 11, "2 tailors of 1 to 11 classes each (9,312). `"),
        ((0,) * 2 + (-1,) * 11, "1 tailor of 2 classes each (4,656), none of them of the other 11. `"),
    ],
)
def test_a_card_tells_whose_the_tailors_are(class_to_tailor, said) -> None:
    count = len(class_to_tailor)
    config = replace(make_config(Path(), DIT), surgery=replace(KIND, class_to_tailor=class_to_tailor), **EDM)
    assert said in method(build_denoiser(config, (1, 8, 8), count), config)


def test_a_card_tells_of_a_tailor_of_no_class() -> None:
    config = replace(make_config(Path(), DIT), surgery=replace(KIND, no_class="tailor"), **EDM)
    assert 'and 4 tailors of single classes and one of "no class" (' in method(
        build_denoiser(config, (1, 8, 8), 4), config
    )


@pytest.mark.parametrize(
    ("surgery", "init", "said"),
    [
        (KIND, "runs/dense", "What was decomposed are the weights of `dense`."),
        (
            TransferConfig(),
            "runs/whole",
            "transfer of the decomposed model `whole`, of which the tailors and label rows",
        ),
        (TransferConfig(trains="all"), "runs/whole/model", "model `whole`, of which everything was trained."),
        (TransferConfig(trains="learngenes"), "runs/whole", "of which the learngenes and all else that is shared were"),
        (
            LoRAConfig(rank=2),
            "runs/dense/model",
            "fitted to its classes from the model `dense`, by `LoRA(rank=2,",
        ),
        (ClassLoRAConfig(), "runs/dense", "Each class has a LoRA (arXiv 2106.09685) of its own"),
        (
            ClassLoRAConfig(),
            "runs/dense",
            "fitted to its classes from the model `dense`, by `ClassLoRA(rank=4,",
        ),
        (TruncationConfig(), "runs/dense", "from the model `dense`, by `Truncation(learngenes=0.27, tailor_rank=4"),
    ],
)
def test_a_card_says_what_model_was_fitted_and_how(surgery, init, said, whole) -> None:
    save(Path("runs/dense"), surgery=IntactConfig())
    config = replace(make_config(Path("runs"), DIT), name="fitted", surgery=surgery, init=init, **EDM)
    export(to_save(config, build_denoiser(config, (1, 8, 8), 4)), config.folder / "model")
    (config.folder / "config.toml").write_text(to_toml(config))
    assert main(["push", "runs/fitted", "--repo", "me/mine", "--dry-run", "--out", "hub"]) == 0
    assert said in Path("hub/README.md").read_text()


TINY = ["--backbone.width", "16", "--backbone.depth", "1", "--train.batch-size", "8", "--train.steps", "2"]
TINY += ["--train.preview-every", "0"]


def test_the_workflow_of_the_recipes(capsys) -> None:
    """Pre-training on digits 0 to 5, transfer of its learngenes to 6 to 9, figures of both."""
    assert main(["train", "tiny-kind", *TINY]) == 0
    run("grow", "runs/tiny-kind", "--classes", "4", "--drop", "-o", "models/tiny-kind-grown")
    assert main(["train", "tiny-kind-transfer", *TINY]) == 0
    first, second = (Denoiser.from_pretrained(f"runs/{name}/model") for name in ("tiny-kind", "tiny-kind-transfer"))
    assert (first.num_classes, second.num_classes) == (6, 4)
    capsys.readouterr()
    assert main(["fid", "runs/tiny-kind-transfer", "digits", "--num", "70", "--steps", "1"]) == 0
    assert "digits-test, classes 6 7 8 9" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["tiny-kind-ict", "tiny-kind-reflow"])
def test_one_step_models_of_the_recipes_come_apart(recipe) -> None:
    """By iCT from nothing, and by 2-RF++ on the pairs of a decomposed model, whose classes are its own."""
    if recipe == "tiny-kind-reflow":
        assert main(["train", "tiny-kind", *TINY]) == 0
        assert main(["pairs", "runs/tiny-kind", "--num", "24", "--steps", "1", "--out", "pairs/tiny-kind"]) == 0
    assert main(["train", recipe, *TINY, "--train.steps", "3"]) == 0  # one for each number of iCT's levels
    run("extract", f"runs/{recipe}", "--classes", "1,4", "-o", "small")
    whole, small = Denoiser.from_pretrained(f"runs/{recipe}/model"), Denoiser.from_pretrained("small")
    assert whole.steps == small.steps == 1
    assert (whole.classes, small.classes) == ((*range(6),), (1, 4))
    assert torch.equal(drawn(small, [4, 1, 4]), drawn(whole, [4, 1, 4]))
    run("recombine", "small", f"runs/{recipe}", "-o", "both")
    assert_same(Denoiser.from_pretrained("both").state_dict(), whole.state_dict())
    named = ["--read-as", "digits", "--keep", *"012345"] if recipe == "tiny-kind-reflow" else []  # pairs name no digits
    run("draw", f"runs/{recipe}", *named, "-o", "kind.png", "--num", "1", "--out", "kind.json")
    assert json.loads(Path("kind.json").read_text())


def test_old_and_new_classes_meet_again_after_a_transfer() -> None:
    """The new classes of a grown model are trained apart from the old ones, and put beside them."""
    assert main(["train", "tiny-kind", *TINY]) == 0
    run("grow", "runs/tiny-kind", "--classes", "2", "-o", "grown")
    run("extract", "grown", "--classes", "0,1,2,3,4,5", "-o", "old")
    run("extract", "grown", "--classes", "6,7", "-o", "new")
    given = ["--init", "new", "--data.keep", "8", "9", "--optim.lr", "0.1"]
    assert main(["train", "tiny-kind-transfer", *TINY, *given]) == 0
    run("recombine", "old", "runs/tiny-kind-transfer", "-o", "all")
    both, old, new = (Denoiser.from_pretrained(name) for name in ("all", "old", "runs/tiny-kind-transfer/model"))
    assert both.classes == (*range(8),)
    assert torch.equal(drawn(both, [0, 5, 3]), drawn(old, [0, 5, 3]))
    assert torch.equal(drawn(both, [6, 7, 6]), drawn(new, [6, 7, 6]))
    grown = Denoiser.from_pretrained("grown")
    assert not torch.equal(drawn(grown, [6, 7, 6]), drawn(new, [6, 7, 6]))


def test_the_share_of_right_digits_is_that_of_the_digits_meant() -> None:
    """Not of their places: real 8s and 9s, classes 0 and 1 of what is kept, are read as 8 and 9."""
    data = load_images("digits", "test").of_classes([8, 9])
    asked = AskedClass([int(name) for name in data.class_names])
    pass_through(FoundImages(data), load_features("digits", image_shape=data.image_shape), [asked], iter)
    assert asked.share > 0.95


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["kind"], "name what to do: genflow kind info|draw|extract|grow|recombine|merge"),
        (["kind", "extrct"], "unknown command 'extrct' of genflow kind; did you mean extract?"),
        (["kind", "info", "nowhere"], "there is no folder nowhere"),
        (["kind", "info", "runs/plain"], "runs/plain is not decomposed, and genflow kind takes models that are"),
        (["kind", "extract", "runs/whole", "--classes", "4", "-o", "new"], "has classes [0, 1, 2, 3], and was asked"),
        (["kind", "extract", "runs/whole", "--classes", "three", "-o", "new"], "--classes must be numbers with commas"),
        (["kind", "extract", "runs/whole", "--classes", "0", "--max-params", "9", "-o", "new"], "9 is too few"),
        (["kind", "extract", "runs/whole", "--classes", "0", "-o", "runs/plain"], "runs/plain exists already"),
        (["kind", "extract", "runs/whole", "--classes", "0", "-o", "file/new"], "file is a file, not a folder"),
        (["kind", "grow", "runs/whole", "--classes", "0", "-o", "new"], "at least one tailor can be added, got 0"),
        (["kind", "grow", "runs/whole", "--classes", "1", "--rank", "2", "-o", "new"], "and new ones must too; got 2"),
        (
            ["kind", "grow", "runs/whole", "--classes", "1", "--seed", str(2**64), "-o", "new"],
            f"--seed must be in [0, 2^64), got {2**64}",
        ),
        (["kind", "grow", "runs/whole", "--classes", "1", "--seed", "-1", "-o", "new"], "--seed must be in [0, 2^64)"),
        (
            ["kind", "grow", "runs/whole", "--classes", "1", "--drop", "--rank", "33", "-o", "new"],
            "blocks.0.attention.q has a kernel of 32x32, whose rank is 32 at most, got rank 33",
        ),
        (
            ["kind", "extract", "runs/whole", "--classes", "1", "-o", "/proc/new"],
            "no file can be made in the folder /proc (",
        ),
        (
            ["kind", "recombine", "runs/whole", "runs/elsewhere", "-o", "new"],
            "not parts of one model: runs/elsewhere has another schedule",
        ),
        (["kind", "info", "runs/typo"], "there is no folder runs/typo"),
        (["kind", "recombine", "runs/whole", "-o", "new"], "give two parts at least, got 1"),
        (["kind", "recombine", "runs/whole", "runs/three", "-o", "new"], "parts of one model have as many labels"),
        (["kind", "draw", "runs/plain", "-o", "a.png"], "runs/plain is not decomposed"),
        (["kind", "draw", "runs/whole", "-o", "a.jpg"], "--picture a.jpg must end in .png"),
        (["kind", "draw", "runs/whole", "-o", "a.png", "--out", "b.png"], "--out b.png must end in .json"),
        (["kind", "draw", "runs/whole", "-o", "a.png", "--out", "b.json", "--read-as", "none"], "no shares for --out"),
        (["kind", "draw", "runs/whole", "-o", "a.png", "--classes", "4"], "was asked for [4]"),
        (
            ["kind", "draw", "runs/whole", "-o", "a.png", "--read-as", "digits", "--keep", "1"],
            "name one for each by --keep",
        ),
        (["kind", "draw", "runs/whole", "-o", "a.png", "--num", "0"], "--num must be at least 1"),
        (["kind", "merge", "runs/whole", "--label", "4", "-o", "new"], "4 classes (0, 1, 2, 3), got 4"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(command, said, whole, capsys) -> None:
    save(Path("runs/plain"), surgery=IntactConfig())
    save(Path("runs/three"), classes=3)
    elsewhere = Denoiser(
        whole.backbone, VE(sigma_max=10.0), whole.parameterization, image_shape=(1, 8, 8), num_classes=4
    )
    elsewhere.save_pretrained("runs/elsewhere")
    Path("file").write_text("")
    before = sorted(Path().rglob("*"))
    assert said in refused(capsys, *command)
    assert sorted(Path().rglob("*")) == before


def test_help_teaches(capsys) -> None:
    run("--help")
    said = capsys.readouterr().out
    for command in ("info", "draw", "extract", "grow", "recombine", "merge"):
        assert f"  {command} " in said
        with pytest.raises(SystemExit):
            main(["kind", command, "--help"])
        assert "Example: genflow kind" in " ".join(capsys.readouterr().out.replace("│", "").split())
