"""One thread, one seed per test, any device: ``pytest --device cuda`` runs the suite's maths there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys

import pytest
import torch

# The first backward pass starts a thread for each device, after which forks cannot train; FakeTensorMode and the
# compiler pretend that there is one. Before them, on a CPU, it starts none, and torch does not look again.
torch.zeros(1, requires_grad=True).sum().backward()


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
