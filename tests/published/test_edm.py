"""Imported weights of EDM and 2-RF++ compute what the authors' code computes (tests/goldens/make_edm.py)."""

import json

import numpy as np
import pytest
import torch
from goldens.make_edm import EDM, HERE, RFPP, make_tensors

from genflow.denoiser import Denoiser
from genflow.nn import UNet
from genflow.published.edm import edm
from genflow.sampling.generate import generate

torch.set_num_threads(1)
CLOSE = {"rtol": 0, "atol": 1e-5}


def golden(name):
    described = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(HERE / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return described, arrays


def imported(name, **changed):
    described, arrays = golden(name)
    given = {"method": "rfpp" if name in RFPP else "edm", "head_channels": described["head_channels"]}
    denoiser, notes = edm(make_tensors(described), **(given | changed))
    return denoiser.requires_grad_(False), notes, arrays


@pytest.mark.parametrize("name", EDM)
def test_edm_network_and_denoiser_equal_the_authors(name):
    denoiser, _, arrays = imported(name)
    y, sigma = arrays.get("y"), arrays["sigma"]
    assert 0.2 < arrays["raw"].std() < 2  # or closeness would say little
    torch.testing.assert_close(denoiser.backbone(arrays["x"], arrays["c_noise"], y), arrays["raw"], **CLOSE)
    x_t = arrays["x"] * sigma[:, None, None, None]
    torch.testing.assert_close(denoiser.denoise(x_t, sigma.double(), y), arrays["denoised"], **CLOSE)


@pytest.mark.parametrize("name", RFPP)
def test_rfpp_velocity_equals_the_authors(name):
    denoiser, _, arrays = imported(name)
    x_t, t = arrays["x"], arrays["t"].double()
    clean = denoiser.denoise(x_t, t, arrays.get("y"))
    torch.testing.assert_close((x_t - clean) / t.float()[:, None, None, None], arrays["velocity"], **CLOSE)


def test_rfpp_is_conditioned_at_pure_noise_as_the_authors_do():
    """They start at t = 1 - 1e-5 in float32; at t = 1 the noise level is infinite, and 80 is another embedding."""
    denoiser, _, arrays = imported("rfpp-ncsnpp")
    x_t, velocity = arrays["x"][3:], arrays["velocity"][3:]
    expected = x_t - (1 - 1e-5) * velocity
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(denoiser.denoise(x_t, one), expected, rtol=0, atol=5e-5)
    other, _ = edm(make_tensors(golden("rfpp-ncsnpp")[0]), method="edm")
    assert (other(x_t, torch.full((1,), 80.0).double()) - denoiser(x_t, one)).abs().max() > 0.1


@pytest.mark.parametrize("name", RFPP)
def test_rfpp_is_told_of_noise_as_the_authors_network_is(name):
    """At both ends of the times that they use, and no further at the ends themselves."""
    denoiser, _, arrays = imported(name)
    row = denoiser.parameterization
    told = row.coefficients(denoiser.schedule, arrays["range"].double()).c_noise
    # our times are float64, theirs float32, in which 1 - t keeps three digits at the upper end
    torch.testing.assert_close(told.float(), arrays["c_noise"], rtol=0, atol=2e-4)
    ends = row.coefficients(denoiser.schedule, torch.tensor([1e-9, 1.0]).double()).c_noise
    torch.testing.assert_close(ends.float(), arrays["c_noise"][[0, -1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in EDM if "augment_dim" in EDM[name]])
def test_augmentation_branch_is_dropped_and_said_so_and_would_be_the_authors(name):
    denoiser, notes, arrays = imported(name)
    count = EDM[name]["augment_dim"]
    assert any(f"dropped the augmentation branch ({count} labels)" in note for note in notes)
    assert "conditioning.time.augment.weight" not in denoiser.backbone.state_dict()
    whole = UNet(**(denoiser.backbone.arguments | {"augment_dim": count})).eval()
    kernel = make_tensors(golden(name)[0])["model.map_augment.weight"]
    whole.load_state_dict(denoiser.backbone.state_dict() | {"conditioning.time.augment.weight": kernel})
    out = whole(arrays["x"], arrays["c_noise"], arrays.get("y"), augment=arrays["augment"])
    torch.testing.assert_close(out, arrays["augmented"], **CLOSE)
    assert (arrays["augmented"] - arrays["raw"]).abs().max() > 1e-2


def test_no_augmentation_branch_is_not_mentioned():
    assert not [note for note in imported("adm")[1] if "augmentation" in note]


@pytest.mark.parametrize("name", [*EDM, *RFPP])
def test_architecture_is_read_from_names_and_shapes(name):
    wanted = EDM[RFPP.get(name, name)]
    denoiser, _, _ = imported(name)
    found = denoiser.backbone.arguments
    assert found["image_size"] == [wanted["img_resolution"]] * 2
    assert denoiser.image_shape == (wanted["img_channels"], *found["image_size"])
    assert denoiser.num_classes == found["num_classes"] == wanted.get("label_dim", 0)
    assert (found["width"], found["multipliers"]) == (wanted["model_channels"], wanted["channel_mult"])
    assert (found["blocks"], found["attention"]) == (wanted["num_blocks"], wanted["attn_resolutions"])
    assert found["resample_filter"] == wanted.get("resample_filter", [1, 1])
    assert found["embedding_multiplier"] == wanted.get("channel_mult_emb", 4)
    assert found["residual_encoder"] == ("encoder_type" in wanted)


def test_scale_of_the_frequencies_is_about_theirs():
    scales = [imported(name)[0].backbone.arguments["fourier_scale"] for name in ("ncsnpp", "ncsnpp-labels", "ddpmpp")]
    assert scales == [pytest.approx(16, rel=0.3), pytest.approx(0.02, rel=0.3), 0]


def test_heads_of_adm_are_an_argument():
    right, notes, arrays = imported("adm-heads")
    wrong, _, _ = imported("adm-heads", head_channels=16)
    assert any("8 channels" in note for note in notes)
    x, c = arrays["x"], arrays["c_noise"]
    assert (right.backbone(x, c) - wrong.backbone(x, c)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"head_channels must divide .* 48 and 64"):
        imported("adm-heads", head_channels=48)


@pytest.mark.parametrize(
    ("name", "sampler", "steps"), [("ddpmpp", "heun", 18), ("rfpp-ncsnpp", "euler", 2), ("rfpp-adm", "euler", 2)]
)
def test_default_sampler_is_the_authors(name, sampler, steps):
    denoiser, _, _ = imported(name)
    assert (denoiser.sampler, denoiser.steps) == (sampler, steps)


def test_networks_of_64_pixels_take_40_steps():
    described, _ = golden("adm")
    shapes = {name.replace("12x12", "64x64").replace("6x6", "32x32"): v for name, v in described["shapes"].items()}
    denoiser, _ = edm(make_tensors(described | {"shapes": shapes}), method="edm")
    assert (denoiser.image_shape, denoiser.steps) == ((1, 64, 64), 40)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_prefixes_of_names_do_not_matter(prefix):
    described, arrays = golden("ddpmpp")
    tensors = {prefix + name.removeprefix("model."): value for name, value in make_tensors(described).items()}
    denoiser, _ = edm(tensors, method="edm")
    torch.testing.assert_close(denoiser.backbone(arrays["x"], arrays["c_noise"]), arrays["raw"], **CLOSE)


def test_half_precision_weights_become_float32():
    tensors = {name: value.half() for name, value in make_tensors(golden("ncsnpp")[0]).items()}
    denoiser, _ = edm(tensors, method="edm")
    assert {p.dtype for p in denoiser.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["ncsnpp", "adm"])
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    denoiser, _, arrays = imported(name)
    denoiser.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert again.config["network"] == denoiser.config["network"]
    for key, value in denoiser.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    images = [
        generate(d, [3, 4], steps=2, labels=arrays["y"][:2].tolist() if "y" in arrays else None)
        for d in (denoiser, again)
    ]
    assert torch.equal(*images)


def changed(name, change):
    tensors = make_tensors(golden(name)[0])
    change(tensors)
    return tensors


def rename(old, new):
    def change(tensors):
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


DEC, ENC = "model.dec.12x12_", "model.enc.12x12_"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ddpmpp", lambda t: t.pop(f"{DEC}block1.norm1.bias"), "lack dec.12x12_block1.norm1.bias"),
        ("ddpmpp", lambda t: t.pop(f"{ENC}conv.weight"), "lack enc.12x12_conv.weight"),
        ("ddpmpp-labels", lambda t: t.pop("model.map_label.bias"), "lack map_label.bias"),
        ("ddpmpp", lambda t: t.update({"model.extra.weight": torch.ones(1)}), "no place for: extra.weight$"),
        ("ddpmpp", lambda t: t.update({f"extra{k}": torch.ones(1) for k in range(9)}), "extra2 and 6 more"),
        ("ddpmpp", lambda t: t.update({f"{DEC}block1.conv1.bias": torch.ones(5)}), r"decoder.1.1.conv1.bias .*\(5,\)"),
        ("ddpmpp", lambda t: t.update({"map_layer0.weight": torch.ones(32, 16)}), "hold two networks"),
        ("ddpmpp", lambda t: t.update({"model.map_layer0.weight": torch.ones(32)}), "map_layer0.weight has shape"),
        ("ddpmpp", lambda t: t.update({"model.map_layer0.weight": torch.ones(33, 16)}), "33 channels .* width 16"),
        ("ddpmpp", lambda t: t.update({"model.map_layer0.weight": torch.ones(32, 24)}), "embedding of 24 channels"),
        ("ddpmpp", rename("_aux_norm", "_aux_up"), "decoder is of the form 'skip'"),
        ("ncsnpp", rename("_aux_residual", "_aux_skip"), "encoder is of the form 'skip'"),
        ("adm", lambda t: t.update({"u": torch.ones(5)}), "iDDPM"),
        ("adm", lambda t: t.update({"model.out_conv.weight": torch.ones(2, 64, 3, 3)}), "turns 1 channels into 2"),
        ("adm", lambda t: t.pop("model.dec.6x6_block0.qkv.weight"), "lack dec.6x6_block0.qkv.weight"),
        ("adm", lambda t: t.update({"model.dec.6x6_in0.qkv.bias": torch.ones(())}), r"in0.qkv.bias has shape \(\)"),
        ("adm", lambda t: t.update({"model.dec.6x6_in0.qkv.weight": torch.ones(3)}), r"in0.qkv.weight has shape \(3,"),
        ("ddpmpp", rename("6x6", "4x4"), r"works at \[12, 4\]"),
        ("ddpmpp", lambda t: t.clear(), "no key like enc.32x32_conv$"),
        ("ddpmpp", rename("model.", "blocks."), "no key like enc.32x32_conv, but for example blocks.dec"),
        ("ncsnpp", lambda t: t.update({f"{DEC}up.skip.resample_filter": torch.ones(1, 1, 2, 2) / 4}), "outer product"),
        ("ncsnpp", lambda t: t.update({f"{ENC}down.x.resample_filter": -torch.ones(1, 1, 4, 4)}), "outer product"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, change, message):
    with pytest.raises(ValueError, match=message):
        edm(changed(name, change), method="edm")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "not the outer product"),
        ([[1.0, 2.5], [2.5, 6.25]], "not the outer product"),
        ([[1.0, 2.0], [2.0, 4.0]], "read the same backwards"),
        ([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], "even number"),
        ([[0.0, 0.0], [0.0, 0.0]], "not a filter of positive weights"),
    ],
)
def test_other_filters_are_refused(rows, message):
    kernel = torch.tensor([[rows]]) / max(sum(map(sum, rows)), 1)
    tensors = make_tensors(golden("ddpmpp")[0])
    tensors |= {key: kernel for key in tensors if key.endswith("resample_filter")}
    with pytest.raises(ValueError, match=message):
        edm(tensors, method="edm")


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match='must be "edm" or "rfpp", got \'vp\''):
        imported("ddpmpp", method="vp")
