import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import make_config

from genflow import __version__
from genflow.build import build_denoiser, export
from genflow.cli.main import COMMANDS, USAGE, main
from genflow.cli.sides import labels_of
from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.schedules import Linear


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A fresh working directory; caches and inputs lie elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained but not trivial model of 8x8 digits, saved as a run saves it."""
    return save_model(tmp_path_factory.mktemp("run") / "model", classes=10)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The same without classes."""
    return save_model(tmp_path_factory.mktemp("bare") / "model", classes=0)


def save_model(folder: Path, classes: int) -> Path:
    denoiser = build_denoiser(make_config(folder.parent), (1, 8, 8), classes)
    torch.manual_seed(1)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser, folder)
    return folder


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Folders and files that something is wrong with."""
    root = tmp_path / "inputs"
    rng = np.random.default_rng(0)

    def save(name: str, *size: int) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / name)

    for k in range(3):
        for folder in ("corrupt", "mixed", "good", "other"):
            save(f"{folder}/{k}.png", *((8, 8) if folder != "other" else (10, 10)))
        save(f"odd/{k}.png", 7, 8, 3)
    (root / "corrupt" / "1.png").write_bytes((root / "corrupt" / "1.png").read_bytes()[:40])
    save("mixed/2.png", 8, 9)
    (root / "empty").mkdir()
    (root / "unknown.toml").write_text("[optim]\nleaning_rate = 1.0\n")
    (root / "type.toml").write_text('seed = "one"\n')
    (root / "text.txt").write_text("no images")
    return root


def refused(capsys, *arguments) -> str:
    """Run the command, and return the one line in which it refuses."""
    code = main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("genflow: ")
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(Path.cwd().rglob("*")) == []
    return shown.err


TINY = ("--backbone.width", "16", "--train.steps", "2", "--train.batch-size", "8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian", ["unknown command 'trian'", "did you mean train?"]),
        ("zzz", ["there are train, sample, pairs, invert, fid, "]),
        ("train", ["name a recipe first", "tiny-rf"]),
        ("train tiny-edn", ["there is no recipe or file 'tiny-edn'", "did you mean tiny-edm?"]),
        ("train tiny-edm stray", ["stray"]),
        ("train {inputs}/unknown.toml", ["unknown.toml: unknown key optim.leaning_rate", "allowed are rule, lr, "]),
        ("train {inputs}/type.toml", ['type.toml: seed = "one": input should be a valid integer']),
        ("train {inputs}/text.txt", ["text.txt is not valid TOML"]),
        ("train tiny-edm --optim.lrr 1", ["--optim.lrr", "did you mean --optim.lr?"]),
        ("train tiny-edm --optim.lr fast", ["--optim.lr", "'fast'"]),
        ("train tiny-edm --train.steps 0", ["train.steps = 0: input should be greater than 0"]),
        ("train tiny-edm --train.mixed-precision fp16", ["fp16 needs loss scaling", "use bf16 or no"]),
        ("train tiny-edm --train.tracker nonsense", ["nonsense", "tensorboard"]),
        ("train tiny-edm --data.path nowhere", ["no images called 'nowhere'", "digits, mnist5k, shapes"]),
        ("train tiny-edm --data.path digit", ["did you mean 'digits'?"]),
        ("train tiny-edm --data.size 16", ["8x8", "is not resized"]),
        ("train tiny-edm --data.path {inputs}/empty", ["empty holds no images", ".png"]),
        ("train tiny-edm --data.path {inputs}/corrupt", ["1.png"]),
        ("train tiny-edm --data.path {inputs}/mixed", ["2.png", "9x8"]),
        ("train tiny-edm --data.path {inputs}/text.txt", ["text.txt is a file, but neither .zip nor .npz"]),
        ("train tiny-edm --data.path {inputs}/odd", ["images of 7x8 cannot be halved", "8x8"]),
        ("train tiny-dit --data.path {inputs}/odd", ["images of 7x8 cannot be cut into patches of 2x2", "8x8"]),
        ("train tiny-edm --init nowhere", ["nowhere"]),
        ("train tiny-edm --init {inputs}/good", ["good is not a saved model"]),
        ("train tiny-edm --init {model}", ["has another network", "such as backbone."]),
        ("sample", ["sample"]),
        ("sample {model} --num 0", ["--num must be at least 1, got 0"]),
        ("sample {model} --num -3", ["--num must be at least 1, got -3"]),
        ("sample {model} --steps -1", ["steps", "-1"]),
        ("sample {model} --times 1 0.4", ["times must fall from at most 1.0 to 0", "[1.0, 0.4]"]),
        ("sample {model} --times 1 0.4 0 --steps 3", ["steps is 3 but times has 2 intervals"]),
        ("sample {model} --first-seed -1", ["seeds must be in [0, 2^64), got -1"]),
        ("sample {model} --labels 3 10 11", ["label 11 is out of range", "the classes 0 to 9 (10 means none)"]),
        ("sample {model} --labels -1", ["label -1 is out of range"]),
        ("sample {bare} --labels 1", ["this model has no classes"]),
        ("sample {bare} --guidance 2", ["guidance 2 needs classes, and this model has none: leave guidance at 1"]),
        ("sample {model} --sampler hune", ["hune", "heun"]),
        ("sample {model} --device nonsense", ["nonsense"]),
        ("sample {inputs}/good", ["good is not a saved model"]),
        ("sample nowhere", ["nowhere"]),
        ("fid digits", ["fid"]),
        ("fid digits {inputs}/empty", ["empty holds no images"]),
        ("fid {inputs}/other {inputs}/good", ["(1, 10, 10)", "(1, 8, 8)"]),
        ("fid {model} {inputs}/other", ["(1, 8, 8)", "(1, 10, 10)"]),
        ("fid {model} digits --num -5", ["--num", "-5"]),
        ("fid {model} digits --steps -5", ["steps", "-5"]),
        ("fid {bare} digits --guidance 2", ["guidance 2 needs classes, and this model has none"]),
        ("fid digits digits --weights x.pth", ["--weights is for inception", "come with the package"]),
        ("fid {inputs}/good {inputs}/good --weights absent.pth", ["--weights absent.pth is not a file"]),
        ("fid {inputs}/good digits --device cuda:77", ["cuda:77"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(arguments, said, inputs, model, bare, capsys) -> None:
    given = [a.format(inputs=inputs, model=model, bare=bare) for a in arguments.split()]
    message = refused(capsys, *given)
    for part in said:
        assert part in message


def test_missing_inception_weights_are_named_with_their_place(inputs, tmp_path, capsys, monkeypatch) -> None:
    def unreachable(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    message = refused(capsys, "fid", inputs / "good", inputs / "good")
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    assert str(tmp_path / "torch") in message
    assert "--weights" in message
    assert not [p for p in (tmp_path / "torch").rglob("*") if p.is_file()]


def train(*arguments) -> int:
    return main(["train", "tiny-rf", *TINY, "--train.preview-every", "0", *map(str, arguments)])


def test_a_run_folder_of_another_model_is_not_continued(capsys) -> None:
    assert train() == 0
    kept = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert train("--backbone.width", "32", "--optim.lr", "1") == 2
    message = capsys.readouterr().err
    assert message.startswith("genflow: runs/tiny-rf holds a run with another backbone and optim")
    assert "--name" in message
    assert message.count("\n") == 1
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == kept
    assert train("--train.steps", "3", "--train.log-every", "1") == 0  # while a longer run is one of the same model
    assert [json.loads(line)["step"] for line in Path("runs/tiny-rf/log.jsonl").read_text().splitlines()] == [2, 3]


def test_a_learning_rate_that_is_far_too_high_ends_in_one_line(capsys) -> None:
    fast = ("--optim.lr", "1e30", "--optim.warmup", "0", "--train.steps", "40", "--train.stop-after-bad", "3")
    assert train(*fast, "--train.log-every", "10") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("genflow: the gradient was not finite for ")
    assert "--optim.lr (now 1e+30)" in last
    saved = Denoiser.from_pretrained("runs/tiny-rf/model")
    assert all(v.isfinite().all() for v in saved.state_dict().values())


def test_fine_tuning_starts_from_a_saved_model_with_other_classes(model, capsys) -> None:
    assert train("--init", model, "--backbone.width", "8") == 2
    assert "such as backbone." in capsys.readouterr().err
    assert train("--init", model, "--data.no-classes", "--name", "none") == 0  # from ten classes to none
    assert train("--init", "runs/none/model", "--name", "ten") == 0  # and back
    assert train("--init", model) == 0


def test_a_missing_model_is_named_at_once(capsys, monkeypatch) -> None:
    """Not after a minute of asking a hub for it, even where there might be a network."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("nothere", "runs/nothere/model", "./not/here"):
        assert f"there is no folder {name}" in refused(capsys, "sample", name)


def test_nonsense_is_refused_rather_than_sampled(model, capsys) -> None:
    assert "finite" in refused(capsys, "sample", model, "--guidance", "nan")
    assert "from low to high" in refused(capsys, "sample", model, "--guidance", "2", "--guidance-interval", "3", "1")
    assert "sigma_min" in refused(capsys, "train", "tiny-edm", "--schedule.sigma-min", "100")
    assert "name" in refused(capsys, "train", "tiny-edm", "--name", "../x")


def test_a_damaged_model_is_named_in_one_line(model, tmp_path, capsys) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    config = broken / "denoiser" / "config.json"
    config.write_text("{")
    assert "config.json is damaged" in refused(capsys, "sample", broken)
    shutil.copyfile(model / "denoiser" / "config.json", config)
    weights = next(broken.rglob("*.safetensors"))
    tensors = load_file(weights)
    tensors["stray"] = tensors.pop("backbone.conv_in.bias")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "missing keys: backbone.conv_in.bias" in refused(capsys, "sample", broken)


def test_a_model_with_classes_is_asked_for_them_whatever_it_is_compared_with(model) -> None:
    denoiser = Denoiser.from_pretrained(model)
    images = np.zeros((12, 1, 8, 8), dtype=np.uint8)
    plain = ImageData(images, None, (), "plain")
    assert labels_of(denoiser, plain).tolist() == labels_of(denoiser, None).tolist() == [*range(10)]
    other = ImageData(images, np.zeros(12, dtype=np.int64), ("a", "b"), "other")
    with pytest.raises(ValueError, match="10 classes, other has 2"):
        labels_of(denoiser, other)


# Sampling


def files(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_the_same_command_writes_the_same_bytes(model) -> None:
    for out in ("a", "b"):
        assert main(["sample", str(model), "--num", "70", "--first-seed", "60", "--out", out]) == 0
    assert files("a") == files("b")
    assert sorted(files("a")) == sorted([*(f"{seed:06d}.png" for seed in range(60, 130)), "samples.json"])
    assert Path("a-grid.png").read_bytes() == Path("b-grid.png").read_bytes()


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_sampling_that_was_interrupted_leaves_no_trace(sampler: str, model) -> None:
    command = ["sample", str(model), "--num", "70", "--sampler", sampler, "--out", "a"]
    assert main(command) == 0
    whole = files("a")
    for name in ("000003.png", "000063.png", "000064.png"):
        (Path("a") / name).unlink()
    before = (Path("a") / "000004.png").stat().st_mtime_ns
    assert main(command) == 0
    assert files("a") == whole
    assert (Path("a") / "000004.png").stat().st_mtime_ns == before  # only what is missing is written


def test_more_images_join_a_folder_and_other_settings_do_not(model, bare, capsys) -> None:
    command = ["sample", str(model), "--out", "a", "--num", "3"]
    assert main(command) == 0
    assert main([*command, "--num", "5"]) == 0
    kept = files("a")
    others = {
        "steps": ["--steps", "3"],
        "times": ["--times", "1", "0.4", "0"],
        "sampler": ["--sampler", "heun"],
        "guidance": ["--guidance", "2"],
        "labels": ["--labels", "1"],
        "guidance_interval": ["--guidance-interval", "0.1", "2"],
    }
    for name, option in others.items():
        capsys.readouterr()
        assert main([*command, *option]) == 2
        message = capsys.readouterr().err
        assert message.startswith("genflow: a holds samples made with other ")
        assert name in message
    assert main(["sample", str(bare), "--out", "a", "--num", "3"]) == 2
    assert "weights" in capsys.readouterr().err
    assert files("a") == kept


def test_samples_say_how_they_were_made(model) -> None:
    assert main(["sample", str(model), "--out", "a", "--num", "12", "--steps", "3", "--labels", "7", "1"]) == 0
    made = json.loads(Path("a/samples.json").read_text())
    expected = {"sampler": "euler", "steps": 3, "network_calls": 3, "guidance": 1.0, "labels": [7, 1]}
    assert made.items() >= expected.items()
    assert made["times"] == Linear().times(3).tolist()
    assert len(made["weights"]) == 64
    with Image.open("a/000000.png") as one, Image.open("a-grid.png") as picture:
        assert one.size == (8, 8)
        assert (picture.width // 48, picture.height // 48) == (2, 6)  # a column per class, images 6 times as large


def test_a_run_folder_stands_for_its_model(model) -> None:
    for given, out in ((model, "a"), (model.parent, "b")):
        assert main(["sample", str(given), "--out", out, "--num", "2"]) == 0
    assert files("a") == files("b")


# The command itself


def test_help_and_version_answer(capsys) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: genflow COMMAND")
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"genflow {__version__}\n")
    assert all(f"\n  {command} " in USAGE for command in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "kind"])  # which has commands of its own
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    shown = capsys.readouterr()
    assert f"genflow {command}" in shown.out
    assert shown.err == ""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "genflow.cli.main", *arguments], capture_output=True, text=True, check=False
    )


def test_a_real_process_refuses_with_code_2_and_one_line() -> None:
    done = run("train", "tiny-edm", "--optim.lrr", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "genflow: Unrecognized options: --optim.lrr, 1; did you mean --optim.lr? (see --help)\n"
    assert os.listdir() == []


@pytest.mark.slow
def test_what_libraries_say_on_the_way_does_not_reach_the_user() -> None:
    done = run("sample", "owner/nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("genflow: cannot load a model from owner/nowhere")
    assert done.stderr.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_the_run_goes_on_from_what_is_saved() -> None:
    import signal

    command = ["train", "tiny-rf", *TINY, "--train.steps", "20000", "--train.checkpoint-every", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "genflow.cli.main", *command],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not list(Path().glob("runs/tiny-rf/checkpoints/step-*")):
        time.sleep(0.01)
    for _ in range(5):  # one can be lost, as in a destructor, where Python drops it; people press again
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            break
    process.kill()  # nothing, if it has stopped
    shown = process.communicate()[1]
    assert process.returncode == 130
    assert shown.splitlines()[-1].startswith("genflow: stopped; the same command again continues")
    assert "Traceback" not in shown
    assert Denoiser.from_pretrained("runs/tiny-rf/model")


def photos(folder: Path, count: int = 12) -> Path:
    """Grey pictures of several sizes."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for k in range(count):
        size = (10 + k % 3, 12)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


def test_a_run_goes_on_with_its_images_wherever_they_lie_and_with_no_others(here, tmp_path, capsys) -> None:
    source = photos(tmp_path / "photos")

    def train(path: Path, steps: int) -> int:
        asked = ["train", "tiny-edm", "--backbone.width", "16", "--train.batch-size", "8", "--data.size", "8"]
        return main([*asked, "--data.path", str(path), "--train.steps", str(steps)])

    assert train(source, 2) == 0
    moved = source.rename(tmp_path / "moved")
    assert train(moved, 3) == 0
    assert "going on from step 2" in capsys.readouterr().out
    Image.fromarray(np.zeros((10, 12), dtype=np.uint8)).save(moved / "0.png")
    assert train(moved, 4) == 2
    assert "the images are not those that runs/tiny-edm began with: give them back" in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "genflow", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "genflow")
