"""
Two lobes of actions as data, ``N((0.5, 0), 0.01) + N((-0.5, 0), 0.01)`` in equal shares, and the value ``a_x``: what a policy
that stays close to the data and likes the value does with them is known.
"""

from typing import Any

import torch as th

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.envs.bandits import BanditEnv
from tests.bandits import SMALL_NET, give_critic

CENTRE, SPREAD = 0.5, 0.1


def lobe_actions(n: int) -> th.Tensor:
    """Actions of the data, ``(n, 2)``."""
    centres = th.stack((CENTRE * (2.0 * th.randint(0, 2, (n,)) - 1.0), th.zeros(n)), dim=1)
    return centres + SPREAD * th.randn(n, 2)


def lobe_batch(n: int = 256) -> Batch:
    """Transitions of one state that end the episode."""
    zeros = th.zeros(n)
    observations = th.zeros(n, 1)
    return Batch(observations, lobe_actions(n), zeros, observations, zeros)


def lobe_model(algorithm: type[OffPolicyDiffusion], slope: float = 1.0, **kwargs: Any) -> Any:
    """The method with small networks, and critics that know the value ``slope * a_x``."""
    policy_kwargs = {**SMALL_NET, **kwargs.pop("policy_kwargs", {})}
    kwargs.setdefault("learning_rate", 2e-3)
    env = BanditEnv(action_dim=2)
    model: Any = algorithm("DiffusionPolicy", env, seed=0, policy_kwargs=policy_kwargs, device="cpu", **kwargs)
    give_critic(model, lambda actions: slope * actions[..., 0])
    return model


def train(model: Any, names: tuple[str, ...], updates: int, batch_size: int = 256) -> None:
    """Train some parts of a method on the lobes, at rates that fall to zero."""
    model.policy.set_training_mode(True)
    base = model.lr_schedule(1)
    parts = [part for part in model.parts() if part.name in names]
    for update in range(updates):
        batch = lobe_batch(batch_size)
        for part in parts:
            for group in part.optimizer.param_groups:
                group["lr"] = base * (1.0 - update / updates)
            model.step(part, part.loss(batch)[0])
            if part.then is not None:
                part.then()


def right_mass(actions: th.Tensor) -> float:
    """Share of the actions that belong to the better lobe."""
    return float((actions[:, 0] > 0).float().mean())


def near_a_lobe(actions: th.Tensor, spreads: float = 4.0) -> float:
    """Share of the actions within some standard deviations of a lobe."""
    distance = (actions - th.tensor([CENTRE, 0.0]) * actions[:, :1].sign()).norm(dim=1)
    return float((distance < spreads * SPREAD).float().mean())


def inside_the_data(actions: th.Tensor) -> float:
    """Share of the actions that are not beyond the outermost of the data, four standard deviations from the lobes."""
    return float(((actions[:, 0].abs() < CENTRE + 4.0 * SPREAD) & (actions[:, 1].abs() < 4.0 * SPREAD)).float().mean())
