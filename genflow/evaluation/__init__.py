"""How good generated images are: feature networks, streaming statistics and the metrics on them."""

from genflow.evaluation.features import (
    DigitFeatures,
    FeatureNetwork,
    InceptionFeatures,
    LossNetwork,
    load_features,
    load_loss_network,
)
from genflow.evaluation.metrics import (
    class_accuracy,
    floor,
    floor_distances,
    frechet_distance,
    memorising_ratio,
    nearest_distances,
)
from genflow.evaluation.statistics import FeatureStats

__all__ = [
    "DigitFeatures",
    "FeatureNetwork",
    "FeatureStats",
    "InceptionFeatures",
    "LossNetwork",
    "class_accuracy",
    "floor",
    "floor_distances",
    "frechet_distance",
    "load_features",
    "load_loss_network",
    "memorising_ratio",
    "nearest_distances",
]
