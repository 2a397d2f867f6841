import pytest
import torch
from oracles import counting_denoiser
from small import Stub

from genflow.schedules import Linear
from genflow.training.ema import EMA

BATCH = 8


def follow(sequence: list[float], **options) -> list[float]:
    """Set a weight to each value in turn, as if by steps of BATCH images, and return the averages."""
    denoiser = Stub(None).denoiser
    weight = denoiser.backbone.weight
    weight.data.fill_(1.0)  # what the average starts from
    ema = EMA(denoiser, **options)
    found = []
    for step, value in enumerate(sequence, start=1):
        weight.data.fill_(value)
        ema.update(step * BATCH, BATCH)
        found.append(ema.denoiser.backbone.weight[0, 0, 0].item())
    return found


def test_the_average_is_the_sum_of_the_past_with_geometric_weights() -> None:
    sequence, beta = [3.0, -2.0, 5.0, 0.5, 4.0], 0.5 ** (BATCH / 20)
    expected = [
        beta**n * 1.0 + sum((1 - beta) * beta ** (n - k) * sequence[k - 1] for k in range(1, n + 1))
        for n in range(1, len(sequence) + 1)
    ]
    assert follow(sequence, halflife=20, rampup=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("halflife", [80, 800])
def test_after_a_halflife_the_past_weighs_one_half(halflife: int) -> None:
    assert follow([0.0] * (halflife // BATCH), halflife=halflife, rampup=0)[-1] == pytest.approx(0.5, rel=1e-5)


def test_the_halflife_grows_with_the_images_seen_until_it_is_reached() -> None:
    ema = EMA(Stub(None).denoiser, halflife=100, rampup=0.05)
    assert ema.beta(400, BATCH) == pytest.approx(0.5 ** (BATCH / 20))  # 0.05 of 400 images
    assert ema.beta(2000, BATCH) == ema.beta(10**9, BATCH) == pytest.approx(0.5 ** (BATCH / 100))
    assert follow([0.0], halflife=100, rampup=0.05)[0] < 1e-5  # so that the start of a run is forgotten at once


def test_halflife_zero_follows_the_weights_exactly() -> None:
    sequence = torch.tensor([0.1, 0.7, -3.3]).tolist()  # values that float32 has
    assert follow(sequence, halflife=0, rampup=0.05) == sequence


def test_buffers_are_copied_and_not_averaged() -> None:
    denoiser = counting_denoiser(Linear())
    denoiser.backbone.register_buffer("count", torch.tensor(0))
    ema = EMA(denoiser, halflife=1e6, rampup=0)
    denoiser.backbone.count += 7
    ema.update(BATCH, BATCH)
    assert ema.denoiser.backbone.count.item() == 7


def test_the_average_is_apart_from_what_is_trained() -> None:
    denoiser = Stub(None).denoiser.train()
    ema = EMA(denoiser, halflife=1e6, rampup=0)
    assert not any(p.requires_grad for p in ema.denoiser.parameters())
    assert not ema.denoiser.training
    before = ema.denoiser.backbone.weight.clone()
    denoiser.backbone.weight.data += 1
    assert torch.equal(ema.denoiser.backbone.weight, before)


@pytest.mark.parametrize("options", [{"halflife": -1, "rampup": 0}, {"halflife": 1, "rampup": -0.1}])
def test_negative_lengths_are_refused(options) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        EMA(Stub(None).denoiser, **options)
