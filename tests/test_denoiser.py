import copy
import json

import pytest
import torch
from oracles import CountingNetwork, counting_denoiser
from torch import nn

import genflow
from genflow.denoiser import Denoiser, config_file, read_config, store_times
from genflow.nn.dit import DiT
from genflow.nn.unet import UNet
from genflow.parameterizations import Conditioning, Converted, Karras, PredictNoise, PredictVelocity
from genflow.sampling import generate
from genflow.schedules import VE, Cosine, DiscreteVP, Linear, Schedule, Trig, linear_betas


def unet(**changes) -> UNet:
    arguments = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)} | changes
    return UNet(image_size=(8, 8), in_channels=1, num_classes=3, **arguments)


def dit() -> DiT:
    return DiT(image_size=(8, 8), in_channels=1, num_classes=3, width=32, depth=2, heads=2)


def shaken(denoiser: Denoiser) -> Denoiser:
    """Give every parameter a random value, those that start at zero too."""
    for p in denoiser.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return denoiser.eval()


def make(backbone: nn.Module | None = None, schedule: Schedule | None = None, **options) -> Denoiser:
    row = options.pop("row", Karras())
    return shaken(Denoiser(backbone or unet(), schedule or VE(), row, image_shape=(1, 8, 8), num_classes=3, **options))


CASES = [
    (unet, VE(), Karras()),
    (unet, Linear(), Karras(conditioning=Conditioning.TIME)),
    (unet, Linear(), Karras(level_max=99999.0)),
    (dit, Linear(), PredictVelocity()),
    (dit, Trig(sigma_data=0.4), PredictVelocity(sigma_data=0.4)),
    (unet, DiscreteVP(betas=linear_betas(50)), PredictNoise()),
    (unet, Cosine(), PredictNoise()),
    (unet, Linear(), Converted(schedule=DiscreteVP(betas=linear_betas(50)), row=PredictNoise())),
]


def test_a_folder_of_before_conditioning_was_a_choice_is_conditioned_by_level(tmp_path) -> None:
    make(schedule=Linear()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["parameterization"]["arguments"].pop("conditioning") == "level"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Denoiser.from_pretrained(tmp_path).parameterization == Karras(conditioning=Conditioning.LEVEL)
    config["parameterization"]["arguments"]["conditioning"] = "tide"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'tide' is not a valid Conditioning"):
        Denoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize(("backbone", "schedule", "row"), CASES)
def test_saved_and_loaded_is_bitwise_the_same(backbone, schedule, row, tmp_path) -> None:
    denoiser = make(backbone(), schedule, row=row, sampler="euler", steps=5, times={"2": [schedule.t_max, 0.2, 0.0]})
    denoiser.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path)
    assert (loaded.schedule, loaded.parameterization) == (schedule, row)
    assert loaded.times == denoiser.times
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor(0.3, dtype=torch.float64), torch.arange(4)
    assert torch.equal(loaded.denoise(x, t, y), denoiser.denoise(x, t, y))
    assert torch.equal(generate(loaded, range(3)), generate(denoiser, range(3)))
    assert not list(tmp_path.glob("*.bin"))


def test_what_a_folder_describes_is_read_without_its_weights(tmp_path) -> None:
    denoiser = make()
    denoiser.save_pretrained(tmp_path / "plain")
    genflow.GenflowPipeline(denoiser).save_pretrained(tmp_path / "pipeline")
    for weights in tmp_path.rglob("*.safetensors"):
        weights.write_bytes(b"")
    for name in ("plain", "pipeline"):
        told = read_config(tmp_path / name)
        assert (told["network"], told["num_classes"]) == (denoiser.config["network"], denoiser.num_classes)
    with pytest.raises(ValueError, match="there is no folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a saved model"):
        read_config(tmp_path)


def test_a_copy_does_not_tell_where_its_original_lay(tmp_path) -> None:
    make().save_pretrained(tmp_path / "secret")
    Denoiser.from_pretrained(tmp_path / "secret").save_pretrained(tmp_path / "copy")
    assert "secret" not in (tmp_path / "copy" / "config.json").read_text()


def test_pipeline_folder_and_its_denoiser(tmp_path) -> None:
    denoiser = make()
    genflow.GenflowPipeline(denoiser).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["denoiser"] == ["genflow", "Denoiser"]  # no file layout in saved folders
    pipeline = genflow.GenflowPipeline.from_pretrained(tmp_path)
    assert torch.equal(generate(pipeline.denoiser, range(3)), generate(denoiser, range(3)))
    assert torch.equal(generate(Denoiser.from_pretrained(tmp_path), range(3)), generate(denoiser, range(3)))


def test_pipeline_speaks_diffusers() -> None:
    pipeline = genflow.GenflowPipeline(make())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=3, num_inference_steps=2, class_labels=[0, 1, 2], guidance_scale=1.5).images
    assert [image.size for image in images] == [(8, 8)] * 3
    assert [image.mode for image in images] == ["L"] * 3
    one, again = (
        pipeline(2, generator=torch.Generator().manual_seed(4), num_inference_steps=2, output_type="pt").images
        for _ in range(2)
    )
    assert torch.equal(one, again)
    assert one.shape == (2, 1, 8, 8)
    (array,) = pipeline(2, num_inference_steps=1, output_type="np", return_dict=False)
    assert array.shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        pipeline(2, generator=[torch.Generator()] * 3)


def test_pipeline_images_do_not_depend_on_the_batch() -> None:
    pipeline = genflow.GenflowPipeline(make())
    together = [torch.Generator().manual_seed(k) for k in range(4)]
    whole = pipeline(4, generator=together, num_inference_steps=2, output_type="pt").images
    alone = pipeline(1, generator=[torch.Generator().manual_seed(2)], num_inference_steps=2, output_type="pt").images
    assert (whole[2] - alone[0]).abs().max() <= 1 / 255 + 1e-6


def test_fresh_network_gives_c_skip_x_t() -> None:
    for backbone in (unet(), dit()):
        denoiser = Denoiser(backbone, VE(), Karras(), image_shape=(1, 8, 8), num_classes=3)
        x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.7, dtype=torch.float64)
        expected = 0.25 / (0.49 + 0.25) * x
        torch.testing.assert_close(denoiser.denoise(x, t), expected)


def test_no_label_is_the_null_class() -> None:
    denoiser, x, t = make(), torch.randn(2, 1, 8, 8), torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(denoiser.denoise(x, t), denoiser.denoise(x, t, torch.tensor([3, 3])))
    assert not torch.equal(denoiser.denoise(x, t), denoiser.denoise(x, t, torch.tensor([1, 1])))


@pytest.mark.parametrize("backbone", [unet, dit])
def test_half_precision_weights_give_float32(backbone) -> None:
    denoiser, x, t = make(backbone()), torch.randn(2, 1, 8, 8), torch.tensor(0.7, dtype=torch.float64)
    exact = denoiser.denoise(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = denoiser.denoise(x, t)
    half = copy.deepcopy(denoiser).to(torch.bfloat16).denoise(x, t)
    for rounded in (mixed, half):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)


def test_foreign_backbones_need_to_be_given(tmp_path) -> None:
    denoiser = counting_denoiser(VE())
    denoiser.backbone.table.data.normal_()
    denoiser.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CountingNetwork is not genflow's: build it and pass it as backbone="):
        Denoiser.from_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path, backbone=CountingNetwork())
    assert torch.equal(loaded.backbone.table, denoiser.backbone.table)


def rewrite(folder, change) -> None:
    from safetensors.torch import load_file, save_file

    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_and_unexpected_weights_are_named(tmp_path) -> None:
    """diffusers only warns, and leaves missing weights uninitialised."""
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("backbone.conv_in.bias"))
    with pytest.raises(ValueError, match=r"missing keys: backbone\.conv_in\.bias"):
        Denoiser.from_pretrained(tmp_path)
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update(stray=torch.zeros(1)))
    with pytest.raises(ValueError, match="unexpected keys: stray"):
        Denoiser.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path) -> None:
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"backbone.conv_in.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"conv_in\.bias"):
        Denoiser.from_pretrained(tmp_path)


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is not a saved model: it has neither config\.json"):
        Denoiser.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a genflow model"):
        Denoiser.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot load a model from no/such-model"):
        Denoiser.from_pretrained("no/such-model")


def test_pickled_weights_are_not_read(tmp_path) -> None:
    denoiser = make()
    denoiser.save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    torch.save(denoiser.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights"):
        Denoiser.from_pretrained(tmp_path)


def test_grids_are_checked() -> None:
    with pytest.raises(ValueError, match="a grid of 2 steps is 3 falling times"):
        make(times={"2": [80.0, 0.0]})


class ToldNetwork(CountingNetwork):
    """A backbone that is told of augmentation, by the mean of its labels, and keeps what it was called with."""

    def forward(self, x, c_noise, y=None, s=None, *, augment=None):
        self.told = augment
        out = super().forward(x, c_noise, y, s)
        return out if augment is None else out + augment.mean(dim=1).view(-1, 1, 1, 1)


def test_times_are_stored_in_a_saved_folder_and_nothing_else_changes(tmp_path) -> None:
    network = DiT(image_size=(8, 8), in_channels=1, num_classes=3, width=16, depth=1, heads=2)
    denoiser = Denoiser(network, VE(), Karras(), image_shape=(1, 8, 8), num_classes=3, times={"4": [80.0, 9, 3, 1, 0]})
    denoiser.save_pretrained(tmp_path / "plain")
    genflow.GenflowPipeline(denoiser).save_pretrained(str(tmp_path / "pipeline"))
    for folder, place in (("plain", "config.json"), ("pipeline", "denoiser/config.json")):
        file = config_file(tmp_path / folder)
        assert file == tmp_path / folder / place
        before = json.loads(file.read_text())
        store_times(file, {2: [80.0, 0.821, 0.0], 10: [80.0, *range(9, 0, -1), 0.0]})
        loaded = Denoiser.from_pretrained(tmp_path / folder)
        assert loaded.times["2"] == [80.0, 0.821, 0.0]
        assert set(loaded.times) == {"2", "4", "10"}
        assert json.loads(file.read_text()) == before | {"times": loaded.times}
        text = file.read_text()
        loaded.save_pretrained(tmp_path / "again")
        again = (tmp_path / "again" / "config.json").read_text()
        assert again.replace('  "_name_or_path": "",\n', "") == text  # as diffusers would write it
        with pytest.raises(ValueError, match="a grid of 2 steps is 3 falling times"):
            store_times(file, {2: [80.0, 90.0, 0.0]})
        assert file.read_text() == text
    with pytest.raises(ValueError, match="is not a saved model"):
        config_file(tmp_path)


def test_augmentation_labels_reach_a_backbone_that_is_told_of_them() -> None:
    denoiser = Denoiser(ToldNetwork(), VE(), Karras(), image_shape=(1, 4, 4), num_classes=10)
    x, t, augment = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64), torch.randn(3, 9)
    shift = augment.mean(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(denoiser(x, t, augment=augment), denoiser(x, t) + shift)
    c_out = (t * 0.5 / (t**2 + 0.25).sqrt()).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(denoiser.denoise(x, t, None, None, augment), denoiser.denoise(x, t) + c_out * shift)


def test_backbones_see_no_augmentation_unless_it_is_given() -> None:
    """Those of other people do not know the argument; sampling never gives it."""
    told = Denoiser(ToldNetwork(), VE(), Karras(), image_shape=(1, 4, 4), num_classes=10)
    other = Denoiser(CountingNetwork(), VE(), Karras(), image_shape=(1, 4, 4), num_classes=10)
    assert torch.equal(generate(told, range(2), steps=2), generate(other, range(2), steps=2))
    assert told.backbone.told is None
    with pytest.raises(TypeError, match="augment"):
        other(torch.zeros(1, 1, 4, 4), torch.tensor(1.0), augment=torch.zeros(1, 9))


def test_labels_without_classes_are_refused() -> None:
    denoiser = counting_denoiser(VE(), classes=0)
    with pytest.raises(ValueError, match="no classes"):
        denoiser.denoise(torch.zeros(1, 1, 4, 4), torch.tensor(1.0), torch.zeros(1, dtype=torch.int64))


def test_copies_are_whole() -> None:
    denoiser = make()
    twin = copy.deepcopy(denoiser)
    assert twin.config == denoiser.config
    assert torch.equal(generate(twin, range(2), steps=2), generate(denoiser, range(2), steps=2))
