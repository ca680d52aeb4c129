"""On-policy trainings whose learning rates go by how far the policy moves."""

from typing_extensions import override

from sb3_diffusion.core.algorithm import DiffusionAlgorithm
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.adaptive_rate import adapt_learning_rates, rates_as_tensors
from sb3_diffusion.processes import average


class AdaptsRates(DiffusionAlgorithm):
    """
    Adapts the learning rates of all parts to ``desired_kl``; a base class of
    :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`.
    """

    desired_kl: float | None
    learning_rate_bounds: tuple[float, float]

    def _adapt_learning_rates(self, metrics: Metrics) -> None:
        assert self.desired_kl is not None
        average([metrics["approx_kl"]])
        optimizers = [part.optimizer for part in self.parts()]
        adapt_learning_rates(optimizers, metrics["approx_kl"], self.desired_kl, self.learning_rate_bounds)

    @override
    def _set_learning_rates(self) -> dict[str, float]:
        if self.desired_kl is None or self._n_updates == 0:
            return super()._set_learning_rates()
        # adapted rates go on from where they are
        rates = {part.name: float(part.optimizer.param_groups[0]["lr"]) for part in self.parts()}
        for name, rate in rates.items():
            self.logger.record(f"train/{name}_learning_rate", rate)
        return rates

    @override
    def _setup_update(self) -> None:
        super()._setup_update()
        if self.desired_kl is not None and self.device.type != "cpu":
            rates_as_tensors((part.optimizer for part in self.parts()), self.device)
