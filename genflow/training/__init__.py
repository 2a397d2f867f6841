"""Training: the order of events of a run, its checkpoints and its log."""

from genflow.training.ema import EMA as EMA
from genflow.training.trainer import Trainer as Trainer
