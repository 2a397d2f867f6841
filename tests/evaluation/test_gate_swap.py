"""The gate-swap matrix, on models of which it is known whether the gate or the label paints."""

import pytest
import torch
from torch import nn

from genflow.denoiser import Denoiser
from genflow.evaluation.gate_picture import _panel, draw
from genflow.evaluation.gate_swap import gate_swap, gates_of, under_gate
from genflow.kind import KINDConfig, decompose, extract
from genflow.nn.embeddings import LabelTable
from genflow.parameterizations import PredictClean
from genflow.sampling.generate import generate
from genflow.schedules import Linear

MEANT = {c: c + 3 for c in range(4)}


class Painter(nn.Module):
    """Images of one brightness, `-1 + mean of W(y) 1 + row(y)`: black, but for what gate and label add."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 8, bias=False)
        self.labels = LabelTable(4, 1)
        nn.init.zeros_(self.labels.weight)

    def forward(self, x, c_noise, y=None, s=None):
        level = self.fc1(x.new_ones(len(x), 8)).mean(dim=1, keepdim=True) + self.labels(y, len(x))  # (B, 1)
        return (level - 1)[:, :, None, None].expand_as(x)


def painter(*, tailors: float, rows: float, class_to_tailor=(0, 1, 2, 3)) -> Denoiser:
    """Class c is painted `2 (c + 1) / 5` brighter than black, in parts by its tailor and its row."""
    model = decompose(Painter(), KINDConfig(class_to_tailor=class_to_tailor, learngenes=0.125, tailor_rank=1))
    brightness = 2 * (torch.arange(4) + 1) / 5
    linear = model.linears()["fc1"]
    with torch.no_grad():
        linear.learngene_sigma.zero_()
        linear.tailor_u.fill_(1)
        linear.tailor_v.fill_(1 / 8)
        linear.tailor_sigma.copy_(tailors * brightness[: len(linear.tailor_sigma), None])
        model.tables()["labels"].rows.copy_(rows * brightness[:, None])
    return Denoiser(model, Linear(), PredictClean(), image_shape=(1, 8, 8), num_classes=4, sampler="euler", steps=2)


def read(images):
    """The class that an image's brightness is nearest to; black is none, 2."""
    return (images.float().mean(dim=(1, 2, 3)) / 255 * 5).round().long() + 2


def test_where_tailors_paint_all_is_of_the_gate() -> None:
    found = gate_swap(painter(tailors=1, rows=0), range(3), read, MEANT)
    assert torch.equal(found.by_gate, torch.ones(4, 4, dtype=torch.float64))
    assert torch.equal(found.by_label, torch.eye(4, dtype=torch.float64))
    assert torch.equal(found.read, torch.arange(3, 7)[:, None, None].expand(4, 4, 3))
    assert (found.alone == 2).all()
    figures = (found.follows_gate, found.follows_label, found.own, found.learngenes_alone)
    assert [figure.value for figure in figures] == [1, 0, 1, 0]


def test_where_labels_paint_nothing_is_of_the_gate() -> None:
    found = gate_swap(painter(tailors=0, rows=1), range(3), read, MEANT)
    assert torch.equal(found.by_gate, torch.eye(4, dtype=torch.float64))
    assert torch.equal(found.by_label, torch.ones(4, 4, dtype=torch.float64))
    figures = (found.follows_gate, found.follows_label, found.own, found.learngenes_alone)
    assert [figure.value for figure in figures] == [0, 1, 1, 1]


def test_gates_are_tailors_and_a_class_without_one_is_a_label_only() -> None:
    denoiser = painter(tailors=1, rows=0, class_to_tailor=(0, 0, 1, -1))
    found = gate_swap(denoiser, range(2), read, MEANT)
    assert found.gates == ((0, 1), (2,))
    assert found.swapped.tolist() == [[False, False, True, True], [True, True, False, True]]
    assert found.by_gate[0].tolist() == [1, 1, 1, 1]  # brightness of class 0: read as one of the two
    assert found.by_gate[1].tolist() == [0, 0, 0, 0]  # that of class 1, for the second tailor
    assert found.follows_gate.value == pytest.approx(2 / 5)


def test_of_an_extracted_model_its_own_classes_are_swapped() -> None:
    whole = painter(tailors=1, rows=0)
    small = whole.around(extract(whole.backbone, {1, 3}))
    found = gate_swap(small, range(2), read, MEANT)
    assert (found.labels, found.gates) == ((1, 3), ((1,), (3,)))
    assert found.read[:, 0, 0].tolist() == [4, 6]
    part = gate_swap(whole, range(2), read, MEANT, labels=(3, 1))
    assert torch.equal(part.read, found.read.flip(0, 1))


def test_shares_and_their_errors_are_those_of_seeds() -> None:
    """A reader that knows seeds by their order: the first of four is misread, whatever gate and label."""
    calls = []

    def careless(images):
        calls.append(len(images))
        classes = read(images)
        classes[::4] = 0
        return classes

    found = gate_swap(painter(tailors=1, rows=0), range(4), careless, MEANT)
    assert calls == [16] * 5
    assert found.follows_gate.value == pytest.approx(0.75)
    assert found.follows_gate.standard_error == pytest.approx(0.25)
    assert found.plain()["read_as_gate"] == [[0.75] * 4] * 4


def test_what_cannot_be_swapped_is_refused() -> None:
    whole = painter(tailors=1, rows=0)
    dense = Denoiser(Painter(), Linear(), PredictClean(), image_shape=(1, 8, 8), num_classes=4)
    small = whole.around(extract(whole.backbone, {1, 3}))
    for denoiser, given, said in (
        (dense, {}, "dense model, which has no gate"),
        (small, {"labels": (0, 1)}, r"has classes \[1, 3\], and was asked for \[0\]"),
        (small, {"labels": (3,)}, r"classes \[3\] have one gate between them"),
        (painter(tailors=1, rows=0, class_to_tailor=(0,) * 4), {}, "have one gate between them"),
        (painter(tailors=1, rows=0, class_to_tailor=(-1,) * 4), {}, "have one gate between them"),
    ):
        with pytest.raises(ValueError, match=said):
            gate_swap(denoiser, range(2), read, MEANT, **given)
    with pytest.raises(ValueError, match=r"names no class for the labels \[3\]"):
        gate_swap(whole, range(2), read, {0: 0, 1: 1, 2: 2})


@pytest.mark.parametrize(
    ("class_to_tailor", "labels", "gates"),
    [((0, 1, 2, 3), (0, 3), 2), ((0, 1, 2, 3), (3,), 1), ((0,) * 4, (0, 3), 1), ((-1,) * 4, (0, 3), 0)],
)
def test_however_few_gates_there_are_the_picture_has_a_row_for_each(class_to_tailor, labels, gates) -> None:
    denoiser, names = painter(tailors=1, rows=0, class_to_tailor=class_to_tailor), {c: str(c) for c in range(4)}
    picture = draw(denoiser, range(1), labels=labels, names=names)
    assert len(gates_of(denoiser, labels)) == gates
    _, height = _panel(len(labels), gates + 1)
    caption = picture.shape[1] - height - _panel(len(labels), 1)[1]
    assert (caption - 8) % 18 == 0
    shown = {tuple(colour) for colour in picture.flatten(1).T.tolist()}
    for label in labels:
        assert (int(generate(denoiser, [0], labels=label)[0, 0, 0, 0]),) * 3 in shown


def test_the_picture_shows_what_is_generated() -> None:
    denoiser, names = painter(tailors=1, rows=0), {c: f"class {c} of four" for c in range(4)}
    plain = draw(denoiser, range(1), labels=(0, 3), names=names)
    swap = gate_swap(denoiser, range(1), read, MEANT, labels=(0, 3))
    full = draw(denoiser, range(1), labels=(0, 3), names=names, swap=swap, reader="brightness")
    assert plain.shape[::2] == full.shape[::2] == (3, full.shape[2])
    assert (full != 255).sum() > (plain != 255).sum()
    shown = {tuple(colour) for colour in plain.flatten(1).T.tolist()}
    for label in (0, 3):
        level = int(generate(denoiser, [0], labels=label)[0, 0, 0, 0])
        assert (level,) * 3 in shown
    assert int(generate(under_gate(denoiser, None), [0], labels=0)[0, 0, 0, 0]) == 0
    latents = Denoiser(denoiser.backbone, Linear(), PredictClean(), image_shape=(4, 8, 8), num_classes=4)
    with pytest.raises(ValueError, match="only pictures"):
        draw(latents, [0], labels=(0, 1), names=names)
