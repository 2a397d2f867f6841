"""One thread, one seed per test, any device: ``pytest --device cuda`` runs the suite's maths there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to run tensor tests on")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """accelerate keeps its state for the life of the process, and refuses another precision in a later test."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compile last: what the compiler leaves running keeps processes that are forked later from training."""
    items.sort(key=lambda item: item.get_closest_marker("compiles") is not None)
