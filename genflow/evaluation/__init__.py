"""How good generated images are: feature networks, streaming statistics, figures and their protocol.

Names are loaded when first used (PEP 562): what reads results does not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genflow.evaluation.features import FeatureNetwork as FeatureNetwork
    from genflow.evaluation.features import load_features as load_features
    from genflow.evaluation.frechet import frechet_distance as frechet_distance
    from genflow.evaluation.networks.digits import load_loss_network as load_loss_network
    from genflow.evaluation.protocol import Result as Result
    from genflow.evaluation.protocol import load_results as load_results
    from genflow.evaluation.statistics import FeatureStats as FeatureStats

_HOME = {
    "FeatureNetwork": "features",
    "load_features": "features",
    "frechet_distance": "frechet",
    "load_loss_network": "networks.digits",
    "Result": "protocol",
    "load_results": "protocol",
    "FeatureStats": "statistics",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'genflow.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"genflow.evaluation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
