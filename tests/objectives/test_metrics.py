import itertools

import pytest
import torch
from torch import Tensor

from genflow.objectives import L1, LPIPS, LPIPSHuber, Norm, PseudoHuber, SquaredL2
from genflow.objectives.metrics import Metric

NOTHING = torch.zeros(1)


def huber(metric: PseudoHuber, residual: Tensor) -> Tensor:
    return metric(residual, NOTHING, NOTHING, NOTHING)


def image(rms: float, size: int) -> Tensor:
    """A residual of D = 3 size^2 values of this rms."""
    noise = torch.randn(1, 3, size, size, dtype=torch.float64)
    return rms * noise / noise.square().mean().sqrt()


@pytest.mark.parametrize(
    ("size", "table"),
    [
        (32, {0.01: 2.934e-5, 0.03: 2.2457e-4, 0.1: 1.3433e-3, 0.3: 4.8995e-3, 1.0: 1.75103e-2}),
        (64, {0.01: 7.483e-6, 0.03: 6.4022e-5, 0.1: 5.1138e-4, 0.3: 2.21968e-3, 1.0: 8.49725e-3}),
    ],
)
def test_the_values_of_2rfpps_pseudo_huber(size: int, table: dict[float, float]) -> None:
    for rms, expected in table.items():
        assert float(huber(PseudoHuber(), image(rms, size))) == pytest.approx(expected, rel=2e-4)


def test_both_papers_constants() -> None:
    """Written out: 2-RF++ has c = 1.65888 and divides by D for D = 3072, iCT c = 0.0299298 and divides by nothing."""
    residual = image(0.2, 32)
    square = residual.square().sum()
    of_rfpp = ((square + 1.65888**2).sqrt() - 1.65888) / 3072
    of_ict = (square + (0.00054 * 3072**0.5) ** 2).sqrt() - 0.00054 * 3072**0.5
    torch.testing.assert_close(huber(PseudoHuber(), residual)[0], of_rfpp, rtol=1e-9, atol=0)
    torch.testing.assert_close(huber(PseudoHuber.ict(), residual)[0], of_ict, rtol=1e-9, atol=0)
    assert pytest.approx(6.63552) == 0.00054 * 3 * 64**2


def test_pseudo_huber_keeps_the_digits_of_small_residuals() -> None:
    """In float32 the difference of the two roots would be 0 here."""
    small = torch.full((1, 3, 32, 32), 1e-6)
    exact = 3072 * 1e-12 / (2 * 1.65888) / 3072
    assert float(huber(PseudoHuber(), small)) == pytest.approx(exact, rel=1e-4)


def test_the_gradient_of_pseudo_huber_is_bounded() -> None:
    for metric, rms in itertools.product((PseudoHuber(divisor_power=0.0), PseudoHuber.ict()), (0.0, 1e-3, 1.0, 1e4)):
        residual = image(1.0, 8).mul(rms).requires_grad_()
        huber(metric, residual).sum().backward()
        assert residual.grad is not None
        assert float(residual.grad.norm()) < 1
        assert residual.grad.isfinite().all()


def test_a_large_c_is_a_square() -> None:
    residual = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    scaled = 2 * 1e6 * 16 * huber(PseudoHuber(c=1e6), residual)  # 2 k / D times the value is the mean of squares
    torch.testing.assert_close(scaled, SquaredL2()(residual, NOTHING, NOTHING, NOTHING))


def quadratic(first: Tensor, second: Tensor) -> Tensor:
    """Stands in for a perceptual distance, which is about quadratic near 0."""
    return (first - second).square().flatten(1).mean(dim=1)


def shot(t: Tensor, error: float, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, clean image and true one where the velocity is off by ``error`` everywhere: clean = x - t error."""
    x = torch.rand(count, 1, 4, 4, dtype=torch.float64)
    residual = torch.full_like(x, -error)
    return residual, x - t.view(-1, 1, 1, 1) * error, x


METRICS = [
    SquaredL2(),
    L1(),
    Norm(),
    PseudoHuber(),
    PseudoHuber.ict(),
    LPIPS(distance=quadratic),
    LPIPS(distance=quadratic, divide_by_t=True),
    LPIPSHuber(distance=quadratic),
    LPIPSHuber(distance=quadratic, divide_by_t=True),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{type(m).__name__}{getattr(m, 'divide_by_t', '')}")
def test_no_metric_charges_for_the_true_velocity(metric: Metric) -> None:
    t = torch.tensor([1e-5, 1e-3, 0.3, 0.7, 0.99, 1 - 1e-5], dtype=torch.float64)
    assert metric(*shot(t, 0.0), t).abs().max() == 0
    assert (metric(*shot(t, 0.1), t) > 0).all()


def test_the_terms_of_lpips_huber() -> None:
    t = torch.tensor([1e-5, 1e-3, 0.3, 0.7, 0.99, 1.0], dtype=torch.float64)
    residual, clean, x = shot(t, 0.1)
    seen, pixels = quadratic(clean, x), huber(PseudoHuber(), residual)
    whole = LPIPSHuber(distance=quadratic)(residual, clean, x, t)
    divided = LPIPSHuber(distance=quadratic, divide_by_t=True)(residual, clean, x, t)
    torch.testing.assert_close(whole, (1 - t) * pixels + seen)
    torch.testing.assert_close(divided, (1 - t) * pixels + seen / t)
    assert whole[-1] == LPIPS(distance=quadratic)(residual, clean, x, t)[-1]  # at the noise end, only what is perceived
    assert divided[-1] == whole[-1]


def test_dividing_by_t_keeps_losses_finite_and_gradients_longer() -> None:
    t = torch.tensor([1e-5, 1e-3, 0.1], dtype=torch.float64)
    seen = LPIPS(distance=quadratic, divide_by_t=True)(*shot(t, 1.0, 3), t)
    torch.testing.assert_close(seen, t)  # t^2 / t: to 0 with t
    gradients = []
    for divide in (False, True):
        velocity = torch.zeros(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
        x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
        clean = x - t.view(-1, 1, 1, 1) * (velocity - 1)
        LPIPS(distance=quadratic, divide_by_t=divide)(velocity - 1, clean, x, t).sum().backward()
        assert velocity.grad is not None
        gradients.append(velocity.grad.flatten(1).norm(dim=1))
    torch.testing.assert_close(gradients[0] / gradients[0][-1], (t / 0.1) ** 2)
    torch.testing.assert_close(gradients[1] / gradients[1][-1], t / 0.1)


def test_the_weight_is_each_images_own() -> None:
    """Not the mean of 1 / t times the mean of the distances."""
    t = torch.tensor([0.01, 0.9], dtype=torch.float64)
    residual, clean, x = shot(t, 0.5, 2)
    metric = LPIPSHuber(distance=quadratic, divide_by_t=True)
    alone = [metric(residual[k : k + 1], clean[k : k + 1], x[k : k + 1], t[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(metric(residual, clean, x, t), torch.cat(alone))


def test_a_pseudo_huber_without_a_corner_is_refused() -> None:
    with pytest.raises(ValueError, match="c must be positive, got 0"):
        PseudoHuber(c=0.0)


def test_icts_values() -> None:
    """c for both image sizes, and the values at no difference, where the gradient is 0, too, and at norm 1."""
    for size, c in ((32, 0.0299298), (64, 0.0598597)):
        step = image(1.0, size)
        step = step / step.norm()
        expected = (1 + c**2) ** 0.5 - c
        assert float(huber(PseudoHuber.ict(), step)) == pytest.approx(expected, rel=1e-6)
        nothing = torch.zeros(1, 3, size, size, requires_grad=True)
        loss = huber(PseudoHuber.ict(), nothing)
        loss.sum().backward()
        assert nothing.grad is not None
        assert float(loss.detach()) == 0
        assert nothing.grad.abs().max() == 0
    assert float(huber(PseudoHuber.ict(), image(1.0, 32) / 3072**0.5)) == pytest.approx(0.970518, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
def test_the_norm_and_its_gradient(scale: float) -> None:
    """The residual's length, and its direction at any length but 0, where both are 0."""
    residual = torch.randn(4, 3, 8, 8).mul(scale)
    residual[0] = 0
    residual.requires_grad_()
    value = Norm()(residual, NOTHING, NOTHING, NOTHING)
    value.sum().backward()
    assert residual.grad is not None
    length = residual.detach().flatten(1).double().norm(dim=1)
    torch.testing.assert_close(value.double(), length, rtol=1e-5, atol=0)
    assert residual.grad[0].abs().max() == 0
    torch.testing.assert_close(
        residual.grad[1:].double(), residual.detach()[1:] / length[1:].view(-1, 1, 1, 1), rtol=1e-4, atol=1e-6
    )


def test_l1_is_the_mean_of_absolute_values() -> None:
    residual = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
    assert L1()(residual, NOTHING, NOTHING, NOTHING).tolist() == [1.5]
    assert SquaredL2()(residual, NOTHING, NOTHING, NOTHING).tolist() == [3.5]
