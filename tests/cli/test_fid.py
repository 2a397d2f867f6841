"""``genflow fid`` from end to end: what it prints and stores, what it notices, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import together
from PIL import Image
from small import make_config
from teachers import make_teacher

from genflow.build import build_denoiser, export
from genflow.cli.main import main
from genflow.data.images import load_images
from genflow.evaluation.protocol import Figure, Result, load_results
from genflow.evaluation.wording import show

TINY = ["--backbone.width", "16", "--train.batch-size", "8", "--train.steps", "2", "--train.preview-every", "0"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """A fresh working directory; the cache lies elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained but not trivial model of 8x8 digits, saved as a run saves it."""
    folder = tmp_path_factory.mktemp("run") / "model"
    denoiser = build_denoiser(make_config(folder.parent), (1, 8, 8), 10)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, folder)
    return folder


def measured(capsys, *arguments: object) -> tuple[Result, str]:
    """Run the command, and return the only result and what was printed."""
    assert main(["fid", *map(str, arguments), "--out", "result.json"]) == 0, capsys.readouterr().err
    (result,) = load_results(Path("result.json"))
    return result, capsys.readouterr().out


def refused(capsys, *arguments: object) -> str:
    before = set(Path().rglob("*"))
    assert main(["fid", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("genflow: ")
    assert shown.err.count("\n") == 1
    assert set(Path().rglob("*")) == before
    return shown.err


def write(folder: Path, images: np.ndarray, kind: str = "png", labels: np.ndarray | None = None, **options) -> Path:
    """Write images (N, C, H, W) as files, in sub-folders by label."""
    for number, image in enumerate(images):
        place = folder if labels is None else folder / f"class{labels[number]}"
        place.mkdir(parents=True, exist_ok=True)
        array = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(array).save(place / f"{number:05}.{kind}", **options)
    return folder


def digits(count: int = 300) -> np.ndarray:
    return load_images("digits", "train").images[:count]


# What is measured


def test_a_distance_is_printed_with_its_protocol_and_stored(capsys) -> None:
    result, shown = measured(capsys, "digits", "digits")
    assert shown.startswith("FD-1198[digits,uint8,raw] = ")
    assert 0 < result.distance.value < 5
    assert result.distance.standard_error < result.distance.value
    low, high = result.distance.interval
    assert low < result.distance.limit < high
    assert result.distance.limit < result.distance.value  # few images make a distance larger
    samples, reference = result.protocol.samples, result.protocol.reference
    assert (samples.n, samples.split, reference.n, reference.split) == (1198, "train", 599, "test")
    assert (samples.shape, samples.codec, samples.quantisation) == ((1, 8, 8), "raw", "uint8")
    assert result.protocol.network.name == "digits"
    for part in ("599", "digits-test", result.protocol.network.weights[:8], "uint8"):
        assert part in shown


def test_a_set_is_at_no_distance_from_itself(capsys) -> None:
    np.savez("a.npz", images=np.random.default_rng(0).integers(0, 256, (700, 8, 8, 1), dtype=np.uint8))
    result, shown = measured(capsys, "a.npz", "a.npz", "--features", "digits")
    assert result.distance.value == 0
    assert "the same images, pixel for pixel" in shown


def test_a_set_is_known_by_its_pixels_whatever_their_order_and_packing(capsys, tmp_path) -> None:
    write(tmp_path / "a", digits())
    write(tmp_path / "b", digits()[::-1], "bmp")
    np.savez("c.npz", images=digits())
    hashes = {
        measured(capsys, "digits", each, "--features", "digits")[0].protocol.reference.hash
        for each in (tmp_path / "a", tmp_path / "b", "c.npz")
    }
    assert len(hashes) == 1
    other = digits().copy()
    other[7, 0, 0, 0] ^= 1
    np.savez("d.npz", images=other)
    assert measured(capsys, "digits", "d.npz", "--features", "digits")[0].protocol.reference.hash not in hashes


def test_results_are_kept_as_they_come(model, capsys, monkeypatch) -> None:
    import genflow.cli.fid as module

    def stop(result):
        if result.protocol.samples.sampling.steps == 2:
            raise KeyboardInterrupt
        return "said"

    monkeypatch.setattr(module, "describe", stop)
    assert main(["fid", str(model), "digits", "--num", "80", "--steps", "1,2,3", "--out", "kept.json"]) == 130
    assert [r.protocol.samples.sampling.steps for r in load_results(Path("kept.json"))] == [1, 2]


def test_features_of_absurd_size_are_refused(capsys) -> None:
    Path("large.py").write_text("def large(images):\n    return images.float().flatten(1)[:, 20:24] * 1e10\n")
    assert "the kid of large:large features is not a finite number" in refused(
        capsys, "digits", "digits", "--features", "large:large", "--metrics", "kid"
    )
    Path("huge.py").write_text("def huge(images):\n    return images.float().flatten(1)[:, 20:24] * 1e30\n")
    assert "beyond 1e+15: scale them" in refused(capsys, "digits", "digits", "--features", "huge:huge")


def test_the_distance_of_a_model_stands_beside_the_floor_and_is_the_same_again(model, capsys) -> None:
    results = []
    for _ in range(2):
        result, shown = measured(capsys, model, "digits", "--steps", "1")
        results.append(result)
        assert shown.startswith("FD-599[digits,uint8,raw] = ")
        for part in ("euler", "seed ranges", "floor 1.66", "memorising ratio ", "asked class "):
            assert part in shown
    assert results[0] == results[1]
    assert len(result.distances) == 5
    assert result.distance.value == pytest.approx(np.mean(result.distances), rel=1e-6)
    assert result.distance.value > 10 * result.figures["floor"].value  # an untrained model
    sampling = result.protocol.samples.sampling
    assert (sampling.sampler, sampling.steps, sampling.calls, sampling.labels) == ("euler", 1, 1, "as the reference's")
    assert len(sampling.weights) == 64


def test_several_numbers_of_steps_are_measured_in_one_go(model, capsys) -> None:
    asked = ["fid", str(model), "digits", "--num", "100", "--steps", "1,3", "--sampler", "heun"]
    assert main([*asked, "--out", "result.json", "--report", "report.html"]) == 0
    shown = capsys.readouterr().out
    one, three = load_results(Path("result.json"))
    assert [r.protocol.samples.sampling.calls for r in (one, three)] == [1, 5]
    assert one.distance.value != three.distance.value
    assert shown.count("FD-100[digits,uint8,raw] = ") == 2
    alone, _ = measured(capsys, model, "digits", "--num", "100", "--steps", "3", "--sampler", "heun")
    assert alone == three
    page = Path("report.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # two numbers of steps, the reference, and the paths
    assert "<svg" in page
    assert "--steps 1,3" in page


def test_the_page_of_a_rectified_flow_tells_how_straight_it_is_and_of_others_does_not(model, capsys) -> None:
    given = ["--num", "50", "--steps", "1", "--report", "report.html"]
    assert main(["fid", str(model), "digits", *given]) == 0
    page = Path("report.html").read_text()
    assert main(["straightness", str(model), "--out", "flow.json"]) == 0
    (flow,) = json.loads(Path("flow.json").read_text())["models"]
    for name in ("straightness", "one_step_gap"):
        assert f"<dd>{show(name, Figure(**flow[name]))}</dd>" in page
    assert "Of 256 seeds in 32 steps" in page
    make_teacher(Path("edm"), classes=10)
    for samples in (["edm", "digits", *given], ["digits", "digits", "--report", "report.html"]):
        assert main(["fid", *samples]) == 0
        assert "Straightness" not in Path("report.html").read_text()


def test_other_seeds_are_other_samples(model, capsys) -> None:
    first, _ = measured(capsys, model, "digits", "--num", "100", "--steps", "1")
    later, shown = measured(capsys, model, "digits", "--num", "100", "--steps", "1", "--first-seed", "100")
    assert later.protocol.samples.sampling.first_seed == 100
    assert first.distance.value != later.distance.value
    assert "seeds 100 to 199" in shown


def test_kid_and_precision_and_recall_are_measured_when_asked_for(model, capsys) -> None:
    result, shown = measured(capsys, "digits", "digits", "--metrics", "kid,pr")
    assert set(result.figures) == {"fd", "kid", "precision", "recall"}
    assert "KID" in shown
    poor, _ = measured(capsys, model, "digits", "--metrics", "kid,pr", "--num", "300", "--steps", "1")
    assert abs(result.figures["kid"].value) < poor.figures["kid"].value / 20
    assert result.figures["precision"].value > 0.7 > poor.figures["precision"].value


def test_classes_are_measured_one_by_one(model, capsys) -> None:
    result, shown = measured(capsys, model, "digits", "--steps", "1", "--num", "200", "--per-class")
    assert "by class, worst first: " in shown
    assert list(result.per_class) == [str(k) for k in range(10)]
    assert min(figure.value for figure in result.per_class.values()) > 0
    same, _ = measured(capsys, "digits", "digits", "--per-class")
    assert all(same.per_class[name].value < result.per_class[name].value for name in same.per_class)


def test_pixels_and_functions_of_the_user_are_features_too(capsys) -> None:
    Path("mine1.py").write_text("def halves(images):\n    return images.float().flatten(1)[:, 30:32] / 255\n")
    pixels, shown = measured(capsys, "digits", "digits", "--features", "pixels")
    assert shown.startswith("FD-1198[pixels,uint8,raw] = ")
    assert pixels.protocol.network.dims == 64
    own, _ = measured(capsys, "digits", "digits", "--features", "mine1:halves")
    assert own.protocol.network.dims == 2


# Statistics


def test_statistics_stand_for_their_images(capsys) -> None:
    assert main(["stats", "digits", "--split", "test", "--features", "digits", "-o", "digits.npz"]) == 0
    capsys.readouterr()
    there, _ = measured(capsys, "digits", "digits")
    result, shown = measured(capsys, "digits", "digits.npz")
    assert result.distance.value == pytest.approx(there.distance.value, rel=1e-9)
    assert result.protocol.reference.n == 599
    assert result.protocol.network.name == "digits", "the file tells which features it holds"
    assert "the reference is statistics only" in shown
    asked, shown = measured(capsys, "digits", "digits.npz", "--metrics", "kid,pr")
    assert set(asked.figures) == {"fd"}
    assert "not measured: KID, precision and recall" in shown


def test_statistics_without_a_protocol_are_taken_and_their_gaps_said(capsys, model) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 64))
    np.savez("foreign.npz", mu=rows.mean(axis=0), sigma=np.cov(rows, rowvar=False))
    _, shown = measured(capsys, "digits", "foreign.npz", "--features", "digits")
    assert "does not tell its n, " in shown
    message = refused(capsys, model, "foreign.npz", "--features", "digits", "--steps", "1")
    assert "give --num" in message
    result, _ = measured(capsys, model, "foreign.npz", "--features", "digits", "--steps", "1", "--num", "80")
    assert result.protocol.samples.sampling.labels == "each in turn"


def test_statistics_of_other_features_are_refused(capsys) -> None:
    assert main(["stats", "digits", "--features", "pixels", "-o", "pixels.npz"]) == 0
    assert main(["stats", "digits", "--features", "digits", "-o", "digits.npz"]) == 0
    capsys.readouterr()
    assert "whose name is pixels, not digits" in refused(capsys, "digits", "pixels.npz", "--features", "digits")
    with np.load("digits.npz") as file:
        stored = dict(file)
    np.savez("small.npz", mu=stored["mu"][:5], sigma=stored["sigma"][:5, :5])
    assert "5 features, digits gives 64" in refused(capsys, "digits", "small.npz", "--features", "digits")


# What is noticed


def test_jpeg_against_png_is_said(capsys, tmp_path) -> None:
    write(tmp_path / "png", digits())
    write(tmp_path / "jpeg", digits(), "jpg", quality=50)
    result, shown = measured(capsys, tmp_path / "jpeg", tmp_path / "png", "--features", "digits")
    assert shown.startswith("FD-300[digits,uint8,jpeg/png] = ")
    assert "warning: codec differs: samples jpeg, reference png" in shown
    assert result.distance.value > 0
    _, shown = measured(capsys, tmp_path / "png", tmp_path / "png", "--features", "digits")
    assert "differs" not in shown


def test_a_name_does_not_hide_a_codec(capsys, tmp_path) -> None:
    write(tmp_path / "png", digits())
    for file in write(tmp_path / "jpeg", digits(), "jpg").iterdir():
        file.rename(file.with_suffix(".png"))
    _, shown = measured(capsys, tmp_path / "jpeg", tmp_path / "png", "--features", "digits")
    assert "codec differs: samples jpeg, reference png" in shown


def test_resizing_of_one_side_is_said_and_sizes_must_agree(capsys, tmp_path) -> None:
    large = np.kron(digits(), np.ones((1, 1, 2, 2), np.uint8))
    write(tmp_path / "large", large)
    write(tmp_path / "small", digits())
    message = refused(capsys, tmp_path / "large", tmp_path / "small", "--features", "digits")
    assert "(1, 16, 16)" in message
    assert "(1, 8, 8)" in message
    assert "--data.size" in message
    asked = [tmp_path / "large", tmp_path / "small", "--features", "digits", "--data.size", 8]
    result, shown = measured(capsys, *asked)
    assert "resizing differs: samples bicubic antialiased 8x8, reference none" in shown
    assert result.protocol.samples.resize == "bicubic antialiased 8x8"


def test_floats_are_not_taken_for_bytes(capsys) -> None:
    np.savez("floats.npz", images=digits().astype(np.float32) / 255)
    message = refused(capsys, "floats.npz", "digits", "--features", "digits")
    assert "float32" in message
    assert "uint8" in message


def test_grey_against_colour_is_said(capsys, tmp_path) -> None:
    write(tmp_path / "grey", digits())
    write(tmp_path / "rgb", np.repeat(digits(), 3, axis=1))
    Path("mine2.py").write_text("def mean(images):\n    return images.float().mean(1).flatten(1)[:, :4] / 255\n")
    result, shown = measured(capsys, tmp_path / "grey", tmp_path / "rgb", "--features", "mine2:mean")
    assert "colour differs: the samples are grey, the reference is RGB" in shown
    assert result.distance.value < 1e-9


def test_palettes_that_were_converted_are_said(capsys, tmp_path) -> None:
    rgb = np.repeat(digits(), 3, axis=1)
    write(tmp_path / "rgb", rgb)
    folder = tmp_path / "palette"
    folder.mkdir()
    for number, image in enumerate(rgb):
        Image.fromarray(image.transpose(1, 2, 0)).convert("P").save(folder / f"{number:05}.png")
    Path("mine3.py").write_text("def mean(images):\n    return images.float().mean(1).flatten(1)[:, 20:24] / 255\n")
    _, shown = measured(capsys, folder, tmp_path / "rgb", "--features", "mine3:mean")
    assert "colour differs: the samples are rgb + converted, the reference is rgb" in shown


def test_too_few_images_are_said(capsys, tmp_path) -> None:
    write(tmp_path / "few", digits(40))
    _, shown = measured(capsys, tmp_path / "few", "digits")
    assert "40 samples are too few for 64 dims" in shown
    assert "KID" in shown


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("digits digits --metrics kdi", ["--metrics has no 'kdi'", "did you mean kid?"]),
        ("digits digits --metrics nonsense", ["there are fid, sfid, kid, is, pr and all"]),
        ("digits digits --metrics sfid,is", ["--metrics is,sfid takes Inception's outputs", "digits"]),
        ("digits digits --out {model}", ["is a folder: give the name of a file"]),
        ("digits digits --report {plain}/00000.png/x.html", ["00000.png is a file, not a folder"]),
        ("{model} {three} --metrics pr --features digits", ["--metrics pr needs at least 4 images a side"]),
        ("{one} digits --features digits", ["a distance needs at least 2 images a side", "the samples are 1"]),
        ("digits {rgb} --features pixels", ["cannot be compared", "--data.channels"]),
        ("digits digits --steps 4", ["--steps is for models, and digits is none"]),
        ("digits digits --first-seed 4", ["--first-seed is for models"]),
        ("{model} digits --steps 1,,2", ["--steps must be a number or several with commas", "'1,,2'"]),
        ("{model} digits --steps 1,1", ["different numbers"]),
        ("{model} digits --steps 0", ["at least 1", "'0'"]),
        ("{model} digits --num 1", ["--num must be at least 2"]),
        ("{model} digits --first-seed -1", ["--first-seed must not be negative"]),
        ("digits digits --features digist", ["no features called 'digist'"]),
        ("digits digits --features nowhere:function", ["nowhere"]),
        ("digits digits --dtype bfloat16", ["float32 only"]),
        ("digits absent.npz", ["absent.npz"]),
        ("{plain} digits --per-class --features digits", ["--per-class needs classes on both sides"]),
        ("{other} digits --per-class --features digits", ["the same classes on both sides", "class0"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, said, model, tmp_path, capsys) -> None:
    plain = write(tmp_path / "plain", digits(30))
    other = write(tmp_path / "other", digits(30), labels=np.arange(30) % 2)
    few = {name: write(tmp_path / name, digits(count)) for name, count in (("three", 3), ("one", 1))}
    rgb = write(tmp_path / "rgb", np.repeat(digits(30), 3, axis=1))
    places = {"model": model, "plain": plain, "other": other, "rgb": rgb, **few}
    message = refused(capsys, *[a.format(**places) for a in arguments.split()])
    for part in said:
        assert part in message


def test_features_that_are_not_numbers_are_refused(capsys) -> None:
    Path("mine4.py").write_text("def bad(images):\n    return images.float().flatten(1)[:, :3] / 0\n")
    assert "NaN or infinit" in refused(capsys, "digits", "digits", "--features", "mine4:bad")


def test_a_damaged_image_is_named(capsys, tmp_path) -> None:
    write(tmp_path / "a", digits(20))
    (tmp_path / "a" / "00007.png").write_bytes((tmp_path / "a" / "00007.png").read_bytes()[:40])
    assert "00007.png" in refused(capsys, tmp_path / "a", "digits", "--features", "digits")


# Runs and processes


def test_a_run_is_measured_on_images_read_as_it_read_them(tmp_path, capsys) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    rng = np.random.default_rng(3)
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (10 + k % 3, 12), dtype=np.uint8)).save(source / f"{k}.png")
    assert main(["train", "tiny-edm", *TINY, "--data.path", str(source), "--data.size", "8", "--name", "own"]) == 0
    for samples in ("runs/own", "runs/own/model"):
        result, _ = measured(capsys, samples, source, "--features", "digits", "--num", 8, "--steps", 1)
        assert result.protocol.reference.resize == "bicubic antialiased 8x8"
        assert result.protocol.reference.n == 12
        assert result.protocol.samples.sampling.ema == "half-life 10,000 images"
    assert "--data.size" in refused(capsys, source, source, "--features", "digits")
    # what the refusal names is an option here too
    _, shown = measured(capsys, source, source, "--features", "digits", "--data.size", 8)
    assert "FD-12[digits,uint8,png] = " in shown


def test_a_run_on_images_as_they_are_differs_from_a_resized_reference(tmp_path, capsys) -> None:
    assert main(["train", "tiny-edm", *TINY, "--name", "plain"]) == 0
    large = write(tmp_path / "large", np.random.default_rng(3).integers(0, 256, (12, 1, 16, 16), dtype=np.uint8))
    given = [large, "--features", "digits", "--num", 8, "--steps", 1, "--data.size", 8]
    _, shown = measured(capsys, "runs/plain", *given)
    assert "resizing differs: samples none, reference bicubic antialiased 8x8" in shown


def test_a_run_on_smaller_mnist5k_is_measured_at_its_size(capsys) -> None:
    given = ["--data.path", "mnist5k", "--data.size", "16", "--train.evaluate-every", "1", "--name", "small16"]
    given += ["--sample.sampler", "euler", "--sample.steps", "1"]  # by which its distances are measured, too
    assert main(["train", "tiny-edm", *TINY, *given]) == 0
    result, shown = measured(capsys, "runs/small16", "mnist5k", "--num", 20, "--steps", 1)
    assert result.protocol.reference.resize == "bicubic antialiased 16x16"
    assert result.protocol.network.resize == "bicubic 16 to 28"
    assert "resizing differs" not in shown  # its images and the reference were resized alike
    assert main(["pairs", "runs/small16", "--num", "20", "--steps", "1", "--out", "pairs"]) == 0
    _, shown = measured(capsys, "pairs", "mnist5k", "--data.size", 16, "--features", "pixels")
    assert "resizing differs" not in shown
    on_pairs = ["--data.path", "pairs", "--init", "runs/small16", "--name", "student"]
    assert main(["train", "tiny-edm", *TINY, *on_pairs]) == 0
    _, shown = measured(capsys, "runs/student", "mnist5k", "--data.size", 16, "--num", 20, "--steps", 1)
    assert "resizing differs" not in shown
    logged = [json.loads(line) for line in Path("runs/small16/log.jsonl").read_text().splitlines()]
    assert any("frechet_train" in line for line in logged)


def test_pairs_are_images_too(model, capsys) -> None:
    assert main(["pairs", str(model), "--num", "40", "--steps", "1", "--out", "pairs"]) == 0
    result, _ = measured(capsys, "pairs", "digits", "--features", "digits")
    assert (result.protocol.samples.name, result.protocol.samples.n) == ("pairs", 40)
    assert main(["stats", "pairs", "--features", "digits", "-o", "pairs.npz"]) == 0
    same, _ = measured(capsys, "pairs", "pairs.npz", "--features", "digits")
    assert abs(same.figures["fd"].value) < 1e-6
    asked, _ = measured(capsys, "pairs", "pairs", "--features", "digits", "--data.size", 8)  # what they are already
    assert abs(asked.figures["fd"].value) < 1e-6
    assert "leave the --data options out" in refused(capsys, "pairs", "pairs", "--features", "digits", "--data.size", 4)


@pytest.mark.slow
def test_several_processes_print_once_what_one_would(model, tmp_path, capfd) -> None:
    def run(out: str, count: int) -> str:
        asked = ["fid", str(model), "digits", "--num", "150", "--steps", "1", "--metrics", "kid", "--out", out]
        assert together(lambda: main(asked), count) == [0] * count
        return capfd.readouterr().out

    one, two = run("one.json", 1), run("two.json", 2)
    assert two.count("FD-150[") == one.count("FD-150[") == 1
    (alone,), (shared,) = load_results(Path("one.json")), load_results(Path("two.json"))
    assert shared.protocol == alone.protocol
    for name, figure in alone.figures.items():
        assert shared.figures[name].value == pytest.approx(figure.value, rel=1e-9)
    assert json.loads(Path("one.json").read_text())["format"] == 2
