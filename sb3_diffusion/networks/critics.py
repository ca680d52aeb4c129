"""
Ensembles of action-value functions (and of state values, with ``action_dim=0``).

All members are evaluated by one batched product per layer, and the state's share of the first layer is computed once for
all candidate actions of that state. Each class follows the same two phases, ``encode_state`` and ``forward``.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import torch as th
from torch import nn

from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.embeddings import TimeEmbedding, TimeNetwork
from sb3_diffusion.networks.layers import Linear, SplitLinear
from sb3_diffusion.networks.norms import BatchRenorm, LayerNorm
from sb3_diffusion.numeric import integer

SelfCritics = TypeVar("SelfCritics", bound="StackedCritics")


class StackedCritics(nn.Module):
    """
    Critics with stacked weights that value features and actions; the base class of the three kinds, which differ in the
    numbers they predict. What values observations is :class:`~sb3_diffusion.policies.values.critic.ObservationCritic`.

    The first layer works on ``[features, action, time features]``. State values are critics without action:
    ``action_dim=0`` and ``actions=None``.

    :param feature_dim: Size of the state features
    :param action_dim: Size of the action, 0 for state values
    :param n_critics: Number of independent members E
    :param net_arch: Widths of the trunk
    :param activation: Name or class
    :param backbone: Name or class of the trunk
    :param layer_norm: Layer norms in the trunk, see the backbone
    :param time_embedding: Name or class for critics that depend on a diffusion time, None for the others
    :param time_dim: Number of features of the time embedding, which the members share
    :param time_arch: Widths of the MLP behind the embedding, None means ``[2 * time_dim, time_dim]``
    :param n_outputs: Numbers predicted per member
    :param batch_renorm: Whether to renormalise features and actions over the batch, and in an MLP the output of every
        activation, too; or arguments of :class:`~sb3_diffusion.networks.norms.BatchRenorm`. In training mode all rows of a
        call then influence each other. The other backbones have norms of their own behind the first layer.
    """

    #: Whether :meth:`q` is the first of the numbers that the network predicts.
    q_is_first_output: ClassVar[bool] = True

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
        n_outputs: int = 1,
        batch_renorm: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.action_dim = action_dim
        self.n_critics = n_critics = integer("n_critics", n_critics, low=1)
        self.n_outputs = n_outputs
        in_dims = [feature_dim] + ([action_dim] if action_dim else [])
        self.time_net: TimeNetwork | None = None
        if time_embedding is not None:
            default_arch = (2 * time_dim, time_dim)
            self.time_net = TimeNetwork(time_embedding, time_dim, time_arch, activation, n_critics, default_arch)
            in_dims.append(self.time_net.output_dim)
        build = resolve_backbone(backbone)
        trunk_options: dict[str, Any] = {"output_gain": math.sqrt(2.0)}
        self.input_norms = nn.ModuleList()
        if batch_renorm is not False:
            norm_options = {} if batch_renorm is True else batch_renorm
            # the members see the same inputs, and their first layers can scale them differently
            self.input_norms.extend(BatchRenorm(dim, **norm_options) for dim in in_dims[: 2 if action_dim else 1])
            if isinstance(build, type) and issubclass(build, MLP):
                trunk_options["batch_renorm"] = norm_options
        self.trunk = build(in_dims, net_arch, n_outputs, activation, n_critics, layer_norm, **trunk_options)

    def encode_state(self, features: th.Tensor) -> th.Tensor:
        """
        The state's share of the first layer, bias included; once per state.

        :param features: (batch, feature_dim)
        :return: (members, batch, width)
        """
        return self.trunk.share(0, self.input_norms[0](features) if self.input_norms else features, bias=True)

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        """
        The time's share of the first layer; once per diffusion time.

        :param t: (1,) one for all, (batch, 1) or (batch, n, 1)
        :return: (members, ..., width) with the leading axes of ``t``
        """
        if self.time_net is None:
            raise ValueError("This critic was built without time_embedding; it cannot depend on a diffusion time.")
        features = self.time_net(t)
        return self.trunk.share(len(self.trunk.first.in_dims) - 1, features, per_member=self.time_net.mlp is not None)

    def outputs(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """
        What the network itself predicts.

        :param actions: (batch, action_dim), n per state (batch, n, action_dim), or None for state values
        :param c: Encoded states, (members, batch, width); left untouched
        :param e: Encoded times as returned by :meth:`encode_time`, None for critics without time
        :return: (members, batch, n_outputs) or (members, batch, n, n_outputs)
        """
        if e is not None:
            c = _join(c, e)
        if actions is None:
            return self.trunk(c, owned=e is not None)
        if self.input_norms:
            actions = self.input_norms[1](actions)
        return self.trunk.evaluate(1, actions, c)

    def full_outputs(self, features: th.Tensor, actions: th.Tensor | None = None, t: th.Tensor | None = None) -> th.Tensor:
        """
        :meth:`outputs` with nothing shared: every row passes through the whole network.

        :param features: (batch, feature_dim)
        :param actions: (batch, action_dim), (batch, n, action_dim), or None for state values
        :param t: (1,), (batch, 1) or (batch, n, 1), None for critics without time
        :return: (members, batch, n_outputs) or (members, batch, n, n_outputs)
        """
        if self.input_norms:
            features = self.input_norms[0](features)
            actions = None if actions is None else self.input_norms[1](actions)
        parts = [features] if actions is None else [features.unsqueeze(1) if actions.dim() == 3 else features, actions]
        lead = parts[-1].shape[:-1]
        if t is None or self.time_net is None:
            return self.trunk.full(*(part.expand(*lead, -1) for part in parts))
        time = self.time_net(t)
        if len(lead) == 2 and t.dim() == 2:
            time = time.unsqueeze(-2)
        elif t.dim() == 1 and self.time_net.mlp is not None:
            time = time.view(self.n_critics, *(1,) * len(lead), -1)
        return self.trunk.full(*(part.expand(self.n_critics, *lead, -1) for part in (*parts, time)), per_member=True)

    @abstractmethod
    def q(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """
        Expected values; what policies and guidance use whatever the kind of critic.

        :param actions: (batch, action_dim), n per state (batch, n, action_dim), or None for state values
        :param c: Encoded states, (members, batch, width)
        :param e: Encoded times, None for critics without time
        :return: (members, batch) or (members, batch, n)
        """

    def value_and_gradient(self, actions: th.Tensor, c: th.Tensor, reduction: str = "min") -> tuple[th.Tensor, th.Tensor]:
        """
        Values reduced over the members and their gradient with respect to the actions; nothing flows back from here.

        :param actions: (batch, action_dim) or (batch, n, action_dim)
        :param c: Encoded states, (members, batch, width)
        :param reduction: ``"min"`` or ``"mean"``
        :return: Values (batch) or (batch, n), and a gradient of the shape of ``actions``
        """
        with th.no_grad():
            plain = self.q_is_first_output and not self.input_norms
            found = self.trunk.evaluate_with_gradient(1, actions, c) if plain else None
            if found is not None:
                values, gradients = found[0][..., 0], found[1]
                if reduction == "mean":
                    return values.mean(0), gradients.mean(0)
                smallest, member = values.min(0)
                return smallest, gradients.gather(0, member[None, ..., None].expand(1, *actions.shape)).squeeze(0)
        # autograd knows nothing of tensors that were made in inference mode, but it knows their copies
        with th.inference_mode(False), th.enable_grad():
            inputs = (actions.clone() if actions.is_inference() else actions.detach()).requires_grad_()
            values = self.q(inputs, c.clone() if c.is_inference() else c.detach())
            reduced = values.mean(0) if reduction == "mean" else values.amin(0)
            # summed over the rows: each gets its own gradient
            (gradient,) = th.autograd.grad(reduced.sum(), inputs)
        return reduced.detach(), gradient

    def member(self: SelfCritics, i: int) -> SelfCritics:
        """
        A copy of one member.

        :param i: Its index
        :return: An ensemble of one, which shares no memory with this one
        """
        if not 0 <= i < self.n_critics:
            raise ValueError(f"i={i} must be the index of one of the {self.n_critics} members.")
        copy = deepcopy(self)
        copy.n_critics = 1
        for module in copy.modules():
            if isinstance(module, Linear | SplitLinear | LayerNorm):
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(parameter.detach()[i : i + 1].clone()))
            elif isinstance(module, BatchRenorm) and module.n_members is not None:
                for name in ("weight", "bias"):
                    setattr(module, name, nn.Parameter(getattr(module, name).detach()[i : i + 1].clone()))
                for name in ("running_mean", "running_var"):
                    setattr(module, name, getattr(module, name)[i : i + 1].clone())
                module.n_members = 1
            if isinstance(module, Backbone | Linear | SplitLinear | LayerNorm):
                module.n_members = 1
        return copy


def _join(c: th.Tensor, e: th.Tensor) -> th.Tensor:
    """Sum of encoded states (members, batch, width) and times (members, [batch, [n,]] width), broadcast by shape."""
    if e.dim() == 2:
        e = e.unsqueeze(1)
    return (c.unsqueeze(2) if e.dim() == 4 else c) + e


class ScalarCritics(StackedCritics):
    """Critics that predict one number, the expected return. Parameters: see :class:`StackedCritics`."""

    def forward(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """
        :param actions: (batch, action_dim), n per state (batch, n, action_dim), or None for state values
        :param c: Encoded states, (members, batch, width)
        :param e: Encoded times, None for critics without time
        :return: (members, batch) or (members, batch, n)
        """
        return self.outputs(actions, c, e).squeeze(-1)

    def full(self, features: th.Tensor, actions: th.Tensor | None = None, t: th.Tensor | None = None) -> th.Tensor:
        """:meth:`forward` with nothing shared, see :meth:`StackedCritics.full_outputs`."""
        return self.full_outputs(features, actions, t).squeeze(-1)

    def q(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`StackedCritics.q`."""
        return self.forward(actions, c, e)


class StandardizedCritics(ScalarCritics):
    """
    Critics whose network predicts returns in units of their spread: ``running_mean + running_std * output``.

    Both buffers (scalars, initially 0 and 1, saved with the weights) are set by the algorithm. Parameters: see
    :class:`StackedCritics`.
    """

    q_is_first_output = False
    running_mean: th.Tensor
    running_std: th.Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("running_mean", th.zeros(()))
        self.register_buffer("running_std", th.ones(()))

    def forward(self, actions: th.Tensor | None, c: th.Tensor, e: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`ScalarCritics.forward`."""
        return th.addcmul(self.running_mean, super().forward(actions, c, e), self.running_std)

    def full(self, features: th.Tensor, actions: th.Tensor | None = None, t: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`ScalarCritics.full`."""
        return th.addcmul(self.running_mean, super().full(features, actions, t), self.running_std)

    def standardize(self, returns: th.Tensor, floor: float) -> None:
        """
        Take mean and spread from returns.

        :param returns: What will be predicted
        :param floor: Smallest spread
        """
        std, mean = th.std_mean(returns, correction=0)
        self.running_mean.copy_(mean)
        self.running_std.copy_(std.clamp(min=floor))
