"""The user's own function as a network, and the pixels as they are."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from genflow.evaluation.features import load_features, sha256
from genflow.evaluation.networks.custom import CustomFeatures
from genflow.evaluation.networks.pixels import PixelFeatures

SHAPE = (3, 4, 5)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["import torch", *lines]) + "\n", encoding="utf-8")
    return path


def images(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)


def refusal(name: str, shape: tuple[int, int, int] = SHAPE) -> str:
    with pytest.raises(RuntimeError) as caught:
        CustomFeatures(name, shape)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


def test_a_function_of_the_current_folder(folder):
    source = write(folder / "mine.py", "def embed(images):", "    return images.double().mean(dim=(2, 3))")
    network = load_features("mine:embed", image_shape=SHAPE)
    assert network.name == "mine:embed"
    assert network.identity.weights == sha256(source)
    assert (network.dims, network.identity.dtype, network.identity.resize) == (3, "float32", None)
    given = images()
    found = network.outputs(given)
    assert found.vectors.dtype == torch.float32
    torch.testing.assert_close(found.vectors, given.float().mean(dim=(2, 3)))
    assert found.spatial is None
    assert found.logits is None


def test_objects_methods_and_modules_within_packages(folder):
    write(folder / "helpers.py", "def embed(images):", "    return images.flatten(1).float()")
    package = write(
        folder / "lab" / "__init__.py",
        "from functools import partial",
        "from helpers import embed",
        "layer = torch.nn.Flatten()",
        "class Half:",
        "    @staticmethod",
        "    @torch.no_grad()",
        "    def embed(images):",
        "        return images.flatten(1).half()",
        "    def __call__(self, images):",
        "        return embed(images)",
        "half = Half()",
        "partly = partial(embed)",
    )
    inner = write(folder / "lab" / "inner.py", "def embed(images):", "    return images[:, :1].flatten(1) / 2")
    given = images()
    for what, source in {
        "lab:Half.embed": package,
        "lab:half": package,
        "lab:half.__call__": package,
        "lab:partly": package,
        "lab:embed": folder / "helpers.py",
        "lab.inner:embed": inner,
    }.items():
        network = CustomFeatures(what, SHAPE)
        assert network.identity.weights == sha256(source), what
        expected = given[:, :1].flatten(1) / 2 if what == "lab.inner:embed" else given.flatten(1).float()
        assert torch.equal(network.features(given), expected), what
    assert "torch.uint8 (1, 60)" in refusal("lab:layer")


def test_an_edit_makes_another_network(folder):
    source = write(folder / "edited.py", "def embed(images):", "    return images.flatten(1).float()")
    before = CustomFeatures("edited:embed", SHAPE).identity
    assert CustomFeatures("edited:embed", SHAPE).identity == before
    source.write_text(source.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    assert CustomFeatures("edited:embed", SHAPE).identity != before


def test_no_gradients_no_autocast_and_no_way_to_the_callers_images(folder):
    write(
        folder / "careful.py",
        "weight = torch.eye(60, requires_grad=True)",
        "def embed(images):",
        "    out = images.flatten(1).float() @ weight",
        "    images.zero_()",
        "    assert out.dtype == torch.float32 and not out.requires_grad",
        "    return out",
    )
    network, given = CustomFeatures("careful:embed", SHAPE), images()
    kept = given.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.features(given)
    assert torch.equal(given, kept)
    assert torch.equal(found, kept.flatten(1).float())


def test_features_that_are_undefined_for_a_constant_image_are_allowed(folder):
    write(
        folder / "contrast.py",
        "def embed(images):",
        "    x = images.flatten(1).float()",
        "    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)",
    )
    network = CustomFeatures("contrast:embed", SHAPE)
    assert network.features(images()).isfinite().all()
    with pytest.raises(
        RuntimeError, match=r"contrast:embed gave NaN or infinite features for 2 of images torch\.uint8"
    ):
        network.features(torch.zeros(2, *SHAPE, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("None", "got NoneType"),
        ("images.flatten(1)", "got torch.uint8 (1, 60)"),
        ("images.float()", "got torch.float32 (1, 3, 4, 5)"),
        ("images.flatten(1).float()[:0]", "got torch.float32 (0, 60)"),
        ("images.flatten(1).float()[:, :0]", "got torch.float32 (1, 0)"),
        ("torch.zeros(1, 60, dtype=torch.complex64)", "got torch.complex64"),
        ("images.flatten(1).float() * float('nan')", "NaN or infinite features for 1 of"),
        ("images.flatten(1).double() * 1e300", "must be finite in float32"),
        ("images.nothing", "failed on images torch.uint8 (1, 3, 4, 5): AttributeError: "),
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("torch.zeros(2, 3) @ torch.zeros(2, 3)", "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_is_no_vector_an_image_is_refused_in_one_line(folder, result, said):
    write(folder / "wrong.py", "def embed(images):", f"    return {result}")
    assert said in refusal("wrong:embed")


def test_wrong_names_and_modules_are_refused_in_one_line(folder):
    write(folder / "odd.py", "number = 3", "from math import sin")
    write(folder / "broken.py", "def embed(images)")
    write(folder / "failing.py", "raise ValueError('two\\nlines')")
    write(folder / "script.py", "import sys", "sys.exit('usage')")
    for name in ("odd:", ":embed", "odd.py:number", "./odd:number"):
        assert "not of the form module:function" in refusal(name)
    assert f"cannot be imported, from {folder}" in refusal("absent:embed")
    assert "No module named 'absent'" in refusal("absent:embed")
    assert "has no attribute 'embed'" in refusal("odd:embed")
    assert "must be a function of images, got int" in refusal("odd:number")
    assert "failed on images" in refusal("odd:sin")
    assert "SyntaxError" in refusal("broken:embed")
    assert "ValueError: two" in refusal("failing:embed")
    assert "SystemExit: usage" in refusal("script:embed")
    assert "has no source file" in refusal("sys:intern")


def test_images_of_other_kinds_and_lengths_are_refused(folder):
    write(folder / "varying.py", "def embed(images):", "    return images.flatten(1).float()")
    network = CustomFeatures("varying:embed", SHAPE)
    with pytest.raises(ValueError, match=r"length 48 for images \(2, 3, 4, 4\), but 60 for the first"):
        network.features(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"varying:embed is shown uint8 images \(B, C, H, W\), got images torch.float32"
    ):
        network.features(images().float())
    with pytest.raises(ValueError, match="give image_shape="):
        load_features("varying:embed")
    with pytest.raises(ValueError, match="whatever the function computes"):
        load_features("varying:embed", Path("x.pth"), image_shape=SHAPE)
    with pytest.raises(ValueError, match="float32 only"):
        load_features("varying:embed", dtype=torch.bfloat16, image_shape=SHAPE)


def test_the_current_folder_comes_first(folder, monkeypatch):
    other, here = folder / "other", folder / "here"
    write(other / "twice.py", "def embed(images):", "    return images.flatten(1).float() * 0")
    source = write(here / "twice.py", "def embed(images):", "    return images.flatten(1).float()")
    monkeypatch.chdir(here)
    sys.path[:0] = [str(other), str(here)]
    assert CustomFeatures("twice:embed", SHAPE).identity.weights == sha256(source)


def test_a_module_of_the_same_name_from_elsewhere_is_not_used_in_silence(folder, monkeypatch):
    first, second = folder / "first", folder / "second"
    for place in (first, second):
        write(place / "same.py", "def embed(images):", f"    return images.flatten(1).float() + {len(place.name)}")
    monkeypatch.chdir(first)
    source = CustomFeatures("same:embed", SHAPE).identity.weights
    monkeypatch.chdir(second)
    message = refusal("same:embed")
    assert f"from {first / 'same.py'}" in message
    assert f"{second / 'same.py'} cannot be" in message
    assert "another name" in message
    monkeypatch.chdir(first)
    assert CustomFeatures("same:embed", SHAPE).identity.weights == source, "back there, it is the right one again"
    del sys.modules["same"]
    monkeypatch.chdir(second)
    assert CustomFeatures("same:embed", SHAPE).identity.weights == sha256(second / "same.py")


def test_a_file_called_like_an_imported_package_is_not_confused_with_it(folder):
    write(folder / "json.py", "def embed(images):", "    return images.flatten(1).float()")
    importlib.import_module("json")
    assert f"{folder / 'json.py'} cannot be" in refusal("json:embed")


def test_pixels_are_the_vectors():
    network = load_features("pixels", image_shape=SHAPE)
    identity = network.identity
    assert (identity.name, identity.weights, identity.resize) == ("pixels", "", "none")
    assert (identity.quantisation, identity.dtype, network.dims) == ("uint8", "float32", 60)
    given = images()
    found = network.outputs(given)
    assert found.vectors.dtype == torch.float32
    assert torch.equal(found.vectors, given.flatten(1).float() / 255)
    assert found.vectors[1, 23] == given[1, 1, 0, 3] / 255, "channel after channel, row after row"
    assert found.spatial is None
    assert found.logits is None


def test_pixels_of_other_shapes_are_refused_with_advice():
    network = PixelFeatures((3, 32, 32))
    for wrong in (torch.zeros(1, 3, 32, 31), torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(ValueError, match=r"uint8 images \(B, 3, 32, 32\), got torch.uint8 .*one shape first"):
            network.features(wrong.to(torch.uint8))
    with pytest.raises(ValueError, match=r"got torch\.float32 \(1, 3, 32, 32\)"):
        network.features(torch.zeros(1, 3, 32, 32))
    assert PixelFeatures((1, 64, 64)).dims == 4096
    with pytest.raises(ValueError, match=r"\(3, 64, 64\) have 12288 pixels; .* at most 4096 .* or resize the images"):
        PixelFeatures((3, 64, 64))
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(3, 0, 8\)"):
        PixelFeatures((3, 0, 8))
    with pytest.raises(ValueError, match="need to know the images' shape"):
        load_features("pixels")
