"""Every way in which samples and reference can differ besides their quality is noticed and said."""

from dataclasses import replace

import pytest

from genflow.evaluation.caveats import caveats, check_sizes, gaps, out_of_reach
from genflow.evaluation.protocol import ImageSet, NetworkIdentity

IMAGES = ImageSet(
    name="photos",
    n=1000,
    hash="abc",
    split="all",
    shape=(3, 32, 32),
    codec="png",
    resize="none",
    colour="rgb",
    quantisation="uint8",
)
NETWORK = NetworkIdentity(
    name="inception", weights="0" * 64, resize="bilinear", quantisation="uint8", dtype="float32", dims=2048
)


def test_equal_sides_need_no_word():
    assert list(caveats(IMAGES, replace(IMAGES, name="other", n=5, hash="d"))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": "jpeg"}, "codec differs: samples jpeg, reference png"),
        ({"codec": "jpeg+png"}, "codec differs: samples jpeg+png, reference png"),
        (
            {"resize": "bicubic antialiased 32x32"},
            "resizing differs: samples bicubic antialiased 32x32, reference none",
        ),
        ({"quantisation": "float"}, "quantisation differs: samples float, reference uint8"),
        ({"colour": "rgb + converted"}, "colour differs: the samples are rgb + converted, the reference is rgb"),
        ({"shape": (1, 32, 32), "colour": "grey"}, "colour differs: the samples are grey, the reference is RGB"),
    ],
)
def test_every_difference_is_said(changes, words):
    said = list(caveats(replace(IMAGES, **changes), IMAGES))
    assert len(said) == 1
    assert words in said[0]


def test_lossless_codecs_are_all_one_and_what_is_unknown_is_not_called_a_difference():
    for codec in ("raw", "bmp", "png"):
        assert list(caveats(replace(IMAGES, codec=codec), IMAGES)) == []
    unknown = replace(IMAGES, shape=None, codec=None, resize=None, colour=None, quantisation=None)
    assert list(caveats(IMAGES, unknown)) == []


def test_sizes_must_agree():
    check_sizes(IMAGES, replace(IMAGES, shape=(1, 32, 32), name="grey"))
    check_sizes(IMAGES, replace(IMAGES, shape=None))
    with pytest.raises(
        ValueError, match=r"\(3, 32, 32\) .* big is \(3, 64, 64\).*--data\.size reads image files, and mnist5k"
    ):
        check_sizes(IMAGES, replace(IMAGES, shape=(3, 64, 64), name="big"))


def test_what_a_statistics_file_does_not_tell_is_listed():
    assert list(gaps(IMAGES, NETWORK, "genflow")) == []
    said = list(gaps(replace(IMAGES, n=None, codec=None), None, "EDM"))
    assert len(said) == 1
    assert "a file of EDM that does not tell its n, codec, network" in said[0]
    assert "network.weights" in next(iter(gaps(IMAGES, replace(NETWORK, weights=None), "genflow")))


def test_what_statistics_cannot_give_is_said():
    few = list(out_of_reach(frozenset({"fid"}), spatial=False))
    assert len(few) == 1
    assert "its own sampling error and bias are neither in the standard error nor taken out" in few[0]
    many = list(out_of_reach(frozenset({"fid", "sfid", "kid", "pr"}), spatial=False))
    assert "not measured: KID, precision and recall, sFID" in many[0]
    assert "sFID" not in "".join(out_of_reach(frozenset({"sfid"}), spatial=True))
