"""One pass: what is measured depends on the images alone, not on processes, files' order, or the number of units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import together
from small import image_data, make_config

from genflow.build import build_denoiser
from genflow.data.images import load_images
from genflow.evaluation.extraction import VectorFile, pass_through
from genflow.evaluation.features import load_features
from genflow.evaluation.measurement import Wanted, figures, gather, moments_of
from genflow.evaluation.sources import FoundImages, Samples
from genflow.evaluation.statistics import FeatureStats
from genflow.units import UNIT

EVERY = Wanted(metrics=frozenset({"fid", "kid", "pr"}))


@pytest.fixture(scope="module")
def network():
    return load_features("digits")


def digits(split: str):
    return load_images("digits", split)


def untrained(classes: int = 10):
    torch.manual_seed(1)
    denoiser = build_denoiser(make_config(Path("runs")), (1, 8, 8), classes)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return denoiser


def test_each_image_is_passed_once_and_in_its_place(network, tmp_path):
    data = image_data(150)
    source = FoundImages(data)
    file = VectorFile(150, network.dims, tmp_path)
    pass_through(source, network, [file])
    own = network.features(torch.from_numpy(data.images))
    torch.testing.assert_close(torch.from_numpy(file.vectors[np.argsort(source.order)]), own, rtol=0, atol=1e-5)
    assert np.array_equal(file.labels, data.labels[source.order])
    assert sorted(source.order) == list(range(150))


def test_moments_are_those_of_all_images(network):
    data = digits("test")
    found = moments_of(FoundImages(data), network)
    whole = FeatureStats.of(network.features(torch.from_numpy(data.images)))
    assert found.count == len(data)
    torch.testing.assert_close(found.mean, whole.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=0, atol=1e-5)


def test_a_set_is_at_no_distance_from_itself_also_in_another_order(network, tmp_path):
    data = digits("test")
    other = data.subset(np.random.default_rng(3).permutation(len(data)))
    reference = gather(FoundImages(data), network, EVERY, tmp_path)
    same = figures([gather(FoundImages(data), network, EVERY, tmp_path)], reference, "digits", EVERY)
    shuffled = figures([gather(FoundImages(other), network, EVERY, tmp_path)], reference, "digits", EVERY)
    assert same["fd"].value == 0
    assert shuffled["fd"].value < 1e-9 * float(reference.moments.covariance.trace())
    assert (same["precision"].value, same["recall"].value) == (1, 1)


def test_the_order_of_images_changes_nothing(network):
    train, held_out = digits("train"), digits("test")
    shuffled = train.subset(np.random.default_rng(3).permutation(len(train)))
    reference = gather(FoundImages(held_out), network, Wanted(), None)
    one, other = (
        figures([gather(FoundImages(each), network, Wanted(), None)], reference, "digits", Wanted())["fd"].value
        for each in (train, shuffled)
    )
    assert one == pytest.approx(other, rel=1e-9)


def test_a_sample_is_the_same_however_many_there_are():
    few, many = (Samples(denoiser=untrained(), count=n, label=lambda seed: seed % 10, steps=1) for n in (3, 500))
    assert few.units == 1
    assert torch.equal(few.unit(0)[0], many.unit(0)[0])
    later = Samples(denoiser=untrained(), count=10, first_seed=UNIT, label=lambda seed: seed % 10, steps=1)
    assert torch.equal(later.unit(0)[0], many.unit(1)[0])
    assert torch.equal(later.unit(0)[1], many.unit(1)[1])


def test_labels_reach_the_model():
    source = Samples(denoiser=untrained(), count=UNIT, label=lambda seed: 3, steps=1)
    other = replace(source, label=lambda seed: 4)
    assert source.unit(0)[1].tolist() == [3] * UNIT
    assert not torch.equal(source.unit(0)[0], other.unit(0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_find_what_one_does(processes, network, tmp_path):
    data, count = digits("test"), 200
    shared = tmp_path / "found"
    shared.mkdir()

    def find(to: Path):
        from accelerate import PartialState

        PartialState(cpu=True)
        folder = tmp_path / f"scratch-{PartialState().process_index}"
        folder.mkdir(exist_ok=True)
        drawn = Samples(denoiser=untrained(), count=count, label=lambda seed: seed % 10, steps=1)
        reference = gather(FoundImages(data), network, EVERY, folder)
        samples = gather(drawn, network, EVERY, folder)
        found = figures([samples], reference, "digits", EVERY)
        vectors = torch.from_numpy(np.array(samples.vectors.vectors))
        labels = torch.from_numpy(samples.vectors.labels)
        torch.save((found, vectors, labels), to / f"{PartialState().process_index}.pt")

    assert together(lambda: find(shared), processes) == [0] * processes
    alone = tmp_path / "alone"
    alone.mkdir()
    assert together(lambda: find(alone), 1) == [0]
    one, vectors, labels = torch.load(alone / "0.pt", weights_only=False)
    for rank in range(processes):
        several, other_vectors, other_labels = torch.load(shared / f"{rank}.pt", weights_only=False)
        assert torch.equal(vectors, other_vectors)
        assert torch.equal(labels, other_labels)
        for name, figure in one.items():
            assert several[name].value == pytest.approx(figure.value, rel=1e-9), name
        assert several["fd"].standard_error == pytest.approx(one["fd"].standard_error, rel=1e-6)
