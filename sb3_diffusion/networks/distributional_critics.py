"""Ensembles of critics that predict a distribution of returns: its mean and width, or its mass on fixed values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.critics import StackedCritics
from sb3_diffusion.networks.embeddings import TimeEmbedding
from sb3_diffusion.networks.regression import neighbours, symexp, symlog
from sb3_diffusion.numeric import integer, real


class GaussianCritics(StackedCritics):
    """
    Critics that predict mean and standard deviation of the return; ``std = softplus(raw)``, without a floor.

    The buffer ``running_std`` (a scalar, initially 1, saved with the weights) is the running mean of the predicted standard
    deviations over members and batches. It scales the losses of distributional soft actor-critics (DSAC-T, DACER);
    this class only stores it, the algorithm updates it.

    Parameters: see :class:`StackedCritics`.
    """

    running_std: th.Tensor

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        n_critics: int = 2,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        backbone: str | type[Backbone] = "mlp",
        layer_norm: bool | str = False,
        time_embedding: str | type[TimeEmbedding] | None = None,
        time_dim: int = 64,
        time_arch: Sequence[int] | None = None,
        batch_renorm: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__(
            feature_dim,
            action_dim,
            n_critics,
            net_arch,
            activation,
            backbone,
            layer_norm,
            time_embedding,
            time_dim,
            time_arch,
            n_outputs=2,
            batch_renorm=batch_renorm,
        )
        self.register_buffer("running_std", th.ones(()))

    @staticmethod
    def moments(outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param outputs: (..., 2)
        :return: Mean and standard deviation, (...,) each
        """
        mean, raw = outputs.unbind(-1)
        return mean, F.softplus(raw)

    def forward(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param actions: (batch, action_dim), n per state (batch, n, action_dim), or None for state values
        :param c: Encoded states, (members, batch, width)
        :param e: Encoded times, None for critics without time
        :return: Mean and standard deviation, (members, batch) or (members, batch, n) each
        """
        return self.moments(self.outputs(actions, c, e))

    def full(
        self, features: th.Tensor, actions: th.Tensor | None = None, t: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """:meth:`forward` with nothing shared, see :meth:`StackedCritics.full_outputs`."""
        return self.moments(self.full_outputs(features, actions, t))

    def q(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`StackedCritics.q`."""
        return self.outputs(actions, c, e)[..., 0]


class CategoricalCritics(StackedCritics):
    """
    Critics that predict a distribution over equally spaced atoms.

    Further parameters: see :class:`StackedCritics`.

    :param n_atoms: Number of atoms, at least two
    :param v_min: First atom
    :param v_max: Last atom
    :param symlog_values: Whether the atoms are symmetric logarithms of the values, so that few atoms span large returns
    """

    q_is_first_output = False
    atoms: th.Tensor

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        n_critics: int = 2,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        backbone: str | type[Backbone] = "mlp",
        layer_norm: bool | str = False,
        time_embedding: str | type[TimeEmbedding] | None = None,
        time_dim: int = 64,
        time_arch: Sequence[int] | None = None,
        n_atoms: int = 101,
        v_min: float = -10.0,
        v_max: float = 10.0,
        symlog_values: bool = False,
        batch_renorm: bool | Mapping[str, Any] = False,
    ) -> None:
        n_atoms = integer("n_atoms", n_atoms, low=2)
        v_min, v_max = real("v_min", v_min), real("v_max", v_max)
        if v_min >= v_max:
            raise ValueError(f"v_min={v_min} must be smaller than v_max={v_max}.")
        super().__init__(
            feature_dim,
            action_dim,
            n_critics,
            net_arch,
            activation,
            backbone,
            layer_norm,
            time_embedding,
            time_dim,
            time_arch,
            n_outputs=n_atoms,
            batch_renorm=batch_renorm,
        )
        self.n_atoms = n_atoms
        self.v_min = v_min
        self.v_max = v_max
        self.symlog_values = symlog_values
        atoms = th.linspace(v_min, v_max, n_atoms, dtype=th.float64).float()
        self.register_buffer("atoms", atoms, persistent=False)

    def forward(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """
        :param actions: (batch, action_dim), n per state (batch, n, action_dim), or None for state values
        :param c: Encoded states, (members, batch, width)
        :param e: Encoded times, None for critics without time
        :return: Logits, (members, batch, n_atoms) or (members, batch, n, n_atoms)
        """
        return self.outputs(actions, c, e)

    def full(self, features: th.Tensor, actions: th.Tensor | None = None, t: th.Tensor | None = None) -> th.Tensor:
        """:meth:`forward` with nothing shared, see :meth:`StackedCritics.full_outputs`."""
        return self.full_outputs(features, actions, t)

    @property
    def atom_values(self) -> th.Tensor:
        """The values the atoms stand for, (n_atoms,)."""
        return symexp(self.atoms) if self.symlog_values else self.atoms

    def log_probs(self, logits: th.Tensor) -> th.Tensor:
        """
        :param logits: (..., n_atoms)
        :return: Log-probabilities of the atoms, (..., n_atoms)
        """
        return F.log_softmax(logits, dim=-1)

    def value(self, logits: th.Tensor) -> th.Tensor:
        """
        :param logits: (..., n_atoms)
        :return: Expected value, (...,)
        """
        mean = logits.softmax(dim=-1) @ self.atoms
        return symexp(mean) if self.symlog_values else mean

    def q(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`StackedCritics.q`."""
        return self.value(self.outputs(actions, c, e))

    def project(self, probabilities: th.Tensor, target_atoms: th.Tensor) -> th.Tensor:
        """
        Move a distribution on other atoms to the atoms of this critic (the projection of C51).

        Each mass is divided between the two nearest atoms so that its mean is kept; targets outside the support go to its end.

        :param probabilities: (..., m), masses of the target atoms
        :param target_atoms: (..., m), values, for example ``reward + gamma * (1 - done) * critics.atom_values``
        :return: (..., n_atoms), with the total mass of ``probabilities``
        """
        probabilities, target_atoms = th.broadcast_tensors(probabilities, target_atoms)
        if self.symlog_values:
            target_atoms = symlog(target_atoms)
        below, share = neighbours(target_atoms, self.v_min, self.v_max, self.n_atoms)
        out = probabilities.new_zeros(*probabilities.shape[:-1], self.n_atoms)
        out.scatter_add_(-1, below, probabilities * (1.0 - share))
        return out.scatter_add_(-1, below + 1, probabilities * share)
