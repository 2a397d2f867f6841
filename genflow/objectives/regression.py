"""Diffusion and rectified flow: regression of the raw network output on its target."""

from __future__ import annotations

from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch, Objective, drop_labels
from genflow.objectives.metrics import Metric, SquaredL2
from genflow.objectives.residuals import RawResidual, Residual
from genflow.objectives.time_distributions import TimeDistribution
from genflow.schedules import expand


class Regression(Objective):
    """Squared error (or another metric) of the raw output against the output that would give the clean image.

    ``loss = metric(network(c_in x_t, c_noise) - target)``, with ``x_t = alpha x + sigma noise``, t of the law
    ``times``, and ``target = (x - c_skip x_t) / c_out``. With the row ``Karras`` this is EDM's weighted loss exactly,
    because its weight is 1 / c_out^2; with ``PredictNoise`` DDPM's simple loss; with ``PredictVelocity`` on ``Linear``
    rectified flow; with ``residual`` ``VelocityResidual`` the error is one of velocities whatever the row, and on pairs
    of noise and image made by a flow (``batch.noise`` the noise that ``batch.x`` was made from) this is 2-RF, with
    ``UShaped`` times and ``LPIPSHuber`` 2-RF++. ``label_dropout`` in [0, 1) is the share of labels replaced by "no
    class". Sources: arXiv 2206.00364, eq. 8; arXiv 2006.11239, eq. 14; arXiv 2209.03003, eq. 1; arXiv 2405.20320,
    section 4.

    Raises ``ValueError`` for a label dropout outside [0, 1).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: TimeDistribution,
        *,
        metric: Metric | None = None,
        residual: Residual | None = None,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        self.denoiser = denoiser
        self.times = times
        self.metric = metric or SquaredL2()
        self.residual = residual or RawResidual()
        self.label_dropout = label_dropout

    def forward(self, batch: Batch, step: int) -> Tensor:
        schedule, row = self.denoiser.schedule, self.denoiser.parameterization
        t = self.times.quantile(batch.u)
        y = drop_labels(batch.y, self.label_dropout, self.denoiser.num_classes)
        x_t = schedule.interpolate(batch.x, batch.noise, t)
        raw = self.denoiser(x_t, t, y, augment=batch.augment)
        scale = self.residual.scale(schedule, row, t)
        error = expand(scale, raw) * (raw - row.target(schedule, batch.x, batch.noise, t))
        return self.metric(error, row.clean(schedule, raw, x_t, t), batch.x, t)

    def after_step(self, step: int) -> None:
        """Nothing follows."""
