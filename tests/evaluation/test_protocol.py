"""Figures travel with how they were obtained, and are ranked only within one protocol."""

import json
from dataclasses import replace

import pytest

from genflow.evaluation.protocol import (
    Figure,
    ImageSet,
    NetworkIdentity,
    Protocol,
    Result,
    Sampling,
    differences,
    figure_label,
    load_results,
    save_results,
    unknown,
)

REFERENCE = ImageSet(
    name="photos",
    n=50_000,
    hash="abc",
    split="train",
    shape=(3, 32, 32),
    codec="png",
    resize="none",
    colour="rgb",
    quantisation="uint8",
)
SAMPLING = Sampling(weights="f" * 64, sampler="heun", steps=4, calls=7)
SAMPLES = replace(REFERENCE, name="runs/a/model", n=5000, hash="fff", split="all", codec="raw", sampling=SAMPLING)
NETWORK = NetworkIdentity(
    name="inception", weights="0" * 64, resize="bilinear", quantisation="uint8", dtype="float32", dims=2048
)
PROTOCOL = Protocol(samples=SAMPLES, reference=REFERENCE, network=NETWORK)


def of(side: str, **changes) -> Protocol:
    return replace(PROTOCOL, **{side: replace(getattr(PROTOCOL, side), **changes)})


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        (of("samples", codec="png"), "FID-5k[inception-tf,uint8,png]"),
        (PROTOCOL, "FID-5k[inception-tf,uint8,raw]"),
        (of("samples", codec="jpeg", n=4999), "FID-4999[inception-tf,uint8,jpeg/png]"),
        (of("reference", codec=None), "FID-5k[inception-tf,uint8,raw]"),
        (of("reference", quantisation="float"), "FID-5k[inception-tf,uint8/float,raw]"),
        (of("network", dtype="bfloat16"), "FID-5k[inception-tf,uint8,raw,bfloat16]"),
    ],
)
def test_a_figure_is_called_by_what_it_depends_on_most(protocol, name):
    assert figure_label("fid", protocol) == name


def test_a_distance_in_other_features_is_no_fid():
    assert figure_label("fd", of("network", name="digits")) == "FD-5k[digits,uint8,raw]"


def test_what_is_compared_may_differ():
    other = replace(
        SAMPLING, weights="e" * 64, sampler="euler", steps=1, calls=1, guidance=2.0, first_seed=7, ema="none"
    )
    assert list(differences(PROTOCOL, of("samples", name="b", hash="eee", split="test", sampling=other))) == []
    assert list(differences(PROTOCOL, of("samples", codec="png", sampling=None))) == []
    assert list(differences(PROTOCOL, of("reference", name="the same, elsewhere", codec="bmp"))) == []


@pytest.mark.parametrize(
    ("side", "field", "value"),
    [
        ("samples", "n", 50_000),
        ("samples", "codec", "jpeg"),
        ("samples", "resize", "bicubic antialiased 32x32"),
        ("samples", "colour", "grey"),
        ("samples", "quantisation", "float"),
        ("reference", "n", 10_000),
        ("reference", "hash", "other"),
        ("reference", "split", "test"),
        ("reference", "codec", "jpeg"),
        ("reference", "resize", None),
        ("network", "name", "dinov2-vit-l-14"),
        ("network", "weights", "1" * 64),
        ("network", "resize", "bicubic"),
        ("network", "dtype", "bfloat16"),
    ],
)
def test_how_it_was_measured_may_not(side, field, value):
    found = list(differences(PROTOCOL, of(side, **{field: value})))
    assert [name for name, _, _ in found] == [f"{side}.{field}"]


def test_results_come_back_as_they_were(tmp_path):
    figures = {
        "fid": Figure(value=1 / 3, standard_error=0.1, limit=0.2, interval=(0.0, 0.4)),
        "kid": Figure(value=-1e-5),
    }
    first = Result(protocol=PROTOCOL, figures=figures, distances=(0.1, 0.2), per_class={"cat": Figure(value=2.0)})
    second = Result(protocol=of("samples", sampling=None), figures={"fd": Figure(value=3.0)}, notes=("careful",))
    save_results(tmp_path / "r.json", [first, second])
    assert load_results(tmp_path / "r.json") == [first, second]
    assert (first.distance.value, second.distance.value) == (1 / 3, 3.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["results"][0]["protocol"]["samples"].update(n="many"),
        lambda d: d["results"][0]["protocol"].pop("network"),
        lambda d: d["results"][0].pop("figures"),
        lambda d: d.update(format=1),
        lambda d: d.pop("results"),
        lambda d: d["results"][0]["figures"].update(fid={"value": "low"}),
    ],
)
def test_damaged_files_are_refused_by_name(change, tmp_path):
    path = tmp_path / "r.json"
    save_results(path, [Result(protocol=PROTOCOL, figures={"fid": Figure(value=1.0)})])
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"r\.json") as caught:
        load_results(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", '{"distance": 3}'])
def test_other_files_are_refused_by_name(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json is not a file that `genflow fid --out` wrote"):
        load_results(tmp_path / "r.json")
    with pytest.raises(ValueError, match="is not there"):
        load_results(tmp_path / "nowhere.json")


def test_a_result_that_is_not_a_number_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_results(tmp_path / "r.json", [Result(protocol=PROTOCOL, figures={"fid": Figure(value=float("nan"))})])
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_knows_is_named():
    assert unknown(REFERENCE) == []
    assert unknown(replace(REFERENCE, n=None, colour=None)) == ["n", "colour"]
    assert unknown(replace(NETWORK, weights=None)) == ["weights"]


@pytest.mark.parametrize(
    "text",
    [
        '"value": 1e999',
        '"value": NaN',
        '"value": 1.0, "standard_error": -1.0',
        '"value": ' + "1" * 5000,
        '"value": ' + "[" * 100_000,
    ],
    ids=["infinite", "nan", "negative", "digits", "deep"],
)
def test_numbers_that_nobody_measured_are_refused_by_name(text, tmp_path):
    path = tmp_path / "r.json"
    save_results(path, [Result(protocol=PROTOCOL, figures={"fid": Figure(value=1.0)})])
    before = path.read_text()
    path.write_text(before.replace('"value": 1.0', text).replace('"standard_error": null,', "", 1))
    with pytest.raises(ValueError, match=r"r\.json is not a file that `genflow fid --out` wrote"):
        load_results(path)
