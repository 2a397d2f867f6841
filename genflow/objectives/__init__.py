"""Training objectives: one loss per image."""

from genflow.objectives.base import Batch as Batch
from genflow.objectives.base import Objective as Objective
from genflow.objectives.metrics import Metric as Metric
from genflow.objectives.metrics import SquaredL2 as SquaredL2
from genflow.objectives.regression import Regression as Regression
from genflow.objectives.time_distributions import DiscreteUniform as DiscreteUniform
from genflow.objectives.time_distributions import LogitNormal as LogitNormal
from genflow.objectives.time_distributions import LogNormal as LogNormal
from genflow.objectives.time_distributions import TimeDistribution as TimeDistribution
from genflow.objectives.time_distributions import Uniform as Uniform
