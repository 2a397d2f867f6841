import json

import pytest
import torch
from small import assert_same
from torch import nn

from genflow.training.checkpoints import Checkpoints, Progress

METER = {"sums": torch.tensor(2.0)}


def parts(width: int = 3) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A module with a convolution in another memory layout, its average, and an Adam that has taken two steps."""
    module = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for _ in range(2):
        module(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()
    return module, nn.Linear(width, 2), optimizer


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v for n, state in optimizer.state_dict()["state"].items() for k, v in state.items()}


def test_everything_comes_back_bit_by_bit_in_the_layout_of_the_parameters(tmp_path) -> None:
    saved = parts()
    progress = Progress(step=7, best=0.1, scaler={"scale": 2.0**16})
    Checkpoints(tmp_path, keep=1).save(progress, *saved, METER, write=True)
    torch.manual_seed(9)
    loaded = parts()
    assert Checkpoints(tmp_path, keep=1).restore(*loaded) == (progress, METER)
    for k in (0, 1):
        assert_same(loaded[k].state_dict(), saved[k].state_dict())
    assert_same(moments(loaded[2]), moments(saved[2]))
    for parameter, state in loaded[2].state.items():  # fused kernels on a GPU take no other
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


def test_without_a_checkpoint_a_run_starts_at_its_beginning(tmp_path) -> None:
    assert Checkpoints(tmp_path / "none", keep=1).restore(*parts()) == (Progress(), {})


def test_the_newest_checkpoint_is_restored_and_the_oldest_go(tmp_path) -> None:
    checkpoints, given = Checkpoints(tmp_path, keep=2), parts()
    for step in (5, 20, 100):  # in the order of numbers, not of names
        checkpoints.save(Progress(step=step), *given, METER, write=True)
    assert checkpoints.steps() == [20, 100]
    assert checkpoints.restore(*given)[0].step == 100


def test_a_failure_while_writing_leaves_the_checkpoints_there_were(tmp_path, monkeypatch) -> None:
    checkpoints, given = Checkpoints(tmp_path, keep=1), parts()
    checkpoints.save(Progress(step=5), *given, METER, write=True)
    monkeypatch.setattr(json, "dumps", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(Progress(step=6), *given, METER, write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path) -> None:
    Checkpoints(tmp_path, keep=1).save(Progress(step=5), *parts(), METER, write=True)
    with pytest.raises(ValueError, match="is a checkpoint of another model; give the run another --name") as error:
        Checkpoints(tmp_path, keep=1).restore(*parts(width=4))
    assert "\n" not in str(error.value)


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path) -> None:
    Checkpoints(tmp_path, keep=1).save(Progress(step=5), *parts(), METER, write=True)
    names = sorted(path.name for path in (tmp_path / "step-00000005").iterdir())
    assert names == ["progress.json", "state.safetensors"]
