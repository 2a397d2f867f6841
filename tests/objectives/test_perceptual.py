"""Perceptual distances: against the package they take their weights from, and as losses."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.build_objective import build_distance, build_metric
from genflow.config import LPIPSConfig, PackagedConfig, VGGConfig
from genflow.data.images import load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.networks.digits import load_loss_network
from genflow.objectives import LPIPS, FeatureDistance, vgg_distance
from genflow.parameterizations import Karras
from genflow.pixels import to_unit
from genflow.schedules import VE


class Maps(nn.Module):
    """Two stages whose maps are known: the image itself, and its mean over 2x2 squares."""

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, F.avg_pool2d(x, 2)


def test_the_formula() -> None:
    first, second = torch.randn(2, 5, 3, 4, 4)
    weights = [torch.rand(3), torch.rand(3)]
    expected = torch.zeros(5)
    for a, b, w in zip(Maps().maps(first), Maps().maps(second), weights, strict=True):
        squares = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
        expected += torch.einsum("bchw,c->b", squares, w) / (a.shape[2] * a.shape[3])
    torch.testing.assert_close(FeatureDistance(Maps(), weights)(first, second), expected)
    plain = FeatureDistance(Maps())(first, second)
    torch.testing.assert_close(plain, FeatureDistance(Maps(), [torch.ones(3), torch.ones(3)])(first, second))


def test_features_without_a_direction_give_no_gradient_and_no_nan() -> None:
    first = torch.zeros(1, 3, 4, 4, requires_grad=True)
    FeatureDistance(Maps())(first, torch.randn(1, 3, 4, 4)).sum().backward()
    assert first.grad is not None
    assert first.grad.isfinite().all()
    bare = torch.zeros(1, 3, 4, 4, requires_grad=True)
    bare.square().sum(dim=1).sqrt().sum().backward()
    assert bare.grad is not None
    assert bare.grad.isnan().all()  # what it is kept from


def test_it_is_computed_in_float32_under_autocast() -> None:
    first, second = torch.rand(2, 4, 1, 8, 8)
    distance = FeatureDistance(load_loss_network("digits"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distance(first, second)
    assert torch.equal(rounded, distance(first, second))


@pytest.mark.parametrize(
    ("name", "size"), [("digits", 8), ("digits", 16), ("digits", 12), ("mnist5k", 28), ("mnist5k", 16), ("mnist5k", 8)]
)
def test_the_packaged_networks_see_at_any_size(name, size: int) -> None:
    """It grows with noise and with blur, and tells another digit from the same one moved by a little noise."""
    images, labels = _digits(name)
    x = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    distance = build_distance(PackagedConfig(name=name), 1)
    assert distance(x, x).abs().max() == 0
    torch.testing.assert_close(distance(x, x.flip(0)), distance(x.flip(0), x))
    noise = torch.randn_like(x)
    grown = [distance((x + level * noise).clamp(-1, 1), x).mean() for level in (0.05, 0.1, 0.2, 0.4)]
    assert grown == sorted(grown)
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    assert distance(blurred, x).mean() > grown[0]
    order = torch.randperm(len(x))
    other = labels != labels[order]
    assert (distance(x[order], x)[other] > distance(x + 0.05 * noise, x)[other]).double().mean() > 0.99
    one = distance(x[3:4], x[4:5])
    torch.testing.assert_close(distance(x[3:6], x[4:7])[:1], one)  # each pair for itself


def _digits(name) -> tuple[Tensor, Tensor]:
    data = load_images(name, "test")
    assert data.labels is not None
    some = slice(None, None, len(data) // 100)  # of all classes, whatever their order
    return to_unit(torch.from_numpy(data.images[some])), torch.from_numpy(data.labels[some])


def test_images_are_drawn_towards_each_other_by_it() -> None:
    """The gradient is one of the first image: following it brings the distance down to a tenth."""
    images, _ = _digits("digits")
    target, moved = images[:8], (images[:8] + 0.3 * torch.randn(8, 1, 8, 8)).requires_grad_()
    distance = build_distance(PackagedConfig(), 1)
    before = distance(moved, target).sum().detach()
    optimizer = torch.optim.Adam([moved], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        distance(moved, target).sum().backward()
        optimizer.step()
    assert distance(moved, target).sum() < before / 10


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """The package's own LPIPS with a random trunk, its maxima made averages."""
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):  # the classifier's 120 million weights would take their time
            made = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
        made.to_empty(device="cpu")
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
    for stage in (made.net.slice2, made.net.slice3, made.net.slice4, made.net.slice5):
        for name, layer in stage.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(stage, name, nn.AvgPool2d(2, 2))
    made.scaling_layer = lpips.lpips.ScalingLayer()
    for lin in made.lins:
        nn.init.uniform_(lin.model[1].weight)
    return made.eval()


def torchvisions(made: nn.Module) -> dict[str, Tensor]:
    """Its trunk as torchvision names it."""
    named = made.net.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    return {f"features.{name.split('.', 1)[1]}": value for name, value in named.items()} | {
        "classifier.0.bias": torch.zeros(3)
    }


def heads(made: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in made.state_dict().items() if name.startswith("lin")}


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_vgg_distance_is_the_packages(theirs: nn.Module, channels: int) -> None:
    first, second = 2 * torch.rand(2, 2, channels, 16, 16) - 1
    distance = vgg_distance(torchvisions(theirs), heads(theirs))

    def enlarge(x: Tensor) -> Tensor:
        """Bilinear weights written out: output pixel i is read at (i + 1/2) 16 / 224 - 1/2, held at the edges."""
        at = ((torch.arange(224) + 0.5) * 16 / 224 - 0.5).clamp(0, 15)
        low = at.long().clamp(max=14)
        matrix = torch.zeros(224, 16)
        matrix[torch.arange(224), low] = 1 - (at - low)
        matrix[torch.arange(224), low + 1] += at - low
        return matrix @ x @ matrix.T

    grey = enlarge(first).expand(-1, 3, -1, -1), enlarge(second).expand(-1, 3, -1, -1)
    ours, expected = distance(first, second), theirs(*grey).flatten()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)
    assert distance(first, first).abs().max() == 0
    moved = first.clone().requires_grad_()
    distance(moved, second).sum().backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    assert (moved.grad != 0).any()


def test_weights_of_another_network_are_named() -> None:
    with pytest.raises(ValueError, match=r"not the weights of VGG-16: features\.0\.weight is missing"):
        vgg_distance({}, {})
    with pytest.raises(ValueError, match=r"features\.0\.weight has shape \(64, 3, 11, 11\), not \(64, 3, 3, 3\)"):
        vgg_distance({"features.0.weight": torch.zeros(64, 3, 11, 11)}, {})


def test_missing_weights_are_refused_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for given, place in (("", tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"), ("mine.pth", "mine.pth")):
        with pytest.raises(ValueError) as error:  # noqa: PT011 (looked at below)
            build_distance(VGGConfig(weights=given), 3)
        assert f"there are no VGG-16 weights at {place}: get https://download.pytorch.org" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_file_of_weights_is_read(theirs: nn.Module, tmp_path) -> None:
    torch.save(torchvisions(theirs), tmp_path / "vgg.pth")
    distance = build_distance(VGGConfig(weights=str(tmp_path / "vgg.pth")), 1)
    first, second = torch.rand(2, 1, 1, 8, 8)
    assert 0 < float(distance(first, second)) < 10  # the package's own heads, on a random trunk


def test_images_and_schedules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the digits network sees grey images, these have 3 channels: use VGG"):
        build_distance(PackagedConfig(), 3)
    with pytest.raises(ValueError, match="VGG sees grey and RGB images, these have 4"):
        build_distance(VGGConfig(), 4)
    denoiser = Denoiser(nn.Identity(), VE(), Karras(), image_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="LPIPS weighs by t"):
        build_metric(LPIPSConfig(perceptual=PackagedConfig(), divide_by_t=True), denoiser)
    undivided = build_metric(LPIPSConfig(perceptual=PackagedConfig()), denoiser)  # for CT and CD
    assert isinstance(undivided, LPIPS)
