"""The tasks that are written in PyTorch: their mechanics, against Gymnasium's where there are any, and their geometry."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_diffusion.envs.tensor import make_tensor_env, tensor_env_ids
from sb3_diffusion.envs.tensor.tasks.cart_pole import CartPoleBalance, CartPoleSwingUp, accelerations
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from sb3_diffusion.envs.tensor.tasks.point_mass import ARRIVAL, CRASH, GOAL, OBSTACLES, PointMass


def test_the_pendulum_is_gymnasiums() -> None:
    """In double precision, so that only the last digits may differ."""
    env, task = gym.make("Pendulum-v1").unwrapped, Pendulum(1, "cpu")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        before = rng.uniform([-9.0, -8.0], [9.0, 8.0])
        action = rng.uniform(-2.0, 2.0, 1)
        env.state = before  # type: ignore[attr-defined]
        seen, reward, terminated, _, _ = env.step(action)
        state, rewards, over = task.transition(th.from_numpy(before[None]), th.from_numpy(action[None]))
        assert state[0].numpy() == pytest.approx(env.state, rel=1e-12, abs=1e-12)  # type: ignore[attr-defined]
        assert rewards.item() == pytest.approx(float(reward), rel=1e-9, abs=1e-12)
        assert task.observe(state)[0].numpy() == pytest.approx(seen, abs=1e-6)
        assert not over.item() and not terminated
    single, many = gym.make("Pendulum-v1"), make_tensor_env("torch/Pendulum-v0", 2, "cpu")
    assert single.observation_space == many.observation_space and single.action_space == many.action_space
    assert single.spec is not None and many.max_episode_length == single.spec.max_episode_steps


def test_the_cart_pole_is_gymnasiums() -> None:
    env, task = gym.make("CartPole-v1").unwrapped, CartPoleBalance(1, "cpu")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    falls = 0
    for _ in range(300):
        before = rng.uniform(-1.0, 1.0, 4) * [2.5, 2.0, 0.25, 2.0]
        push = int(rng.integers(2))
        env.state, env.steps_beyond_terminated = before, None  # type: ignore[attr-defined]
        _, _, terminated, _, _ = env.step(push)
        action = th.tensor([[2.0 * push - 1.0]], dtype=th.float64)
        state, rewards, over = task.transition(th.from_numpy(before[None]), action)
        assert state[0].numpy() == pytest.approx(np.array(env.state), rel=1e-12, abs=1e-12)  # type: ignore[attr-defined]
        assert over.item() == terminated and rewards.item() == 1.0
        falls += terminated
    assert 30 < falls < 270
    assert make_tensor_env("torch/CartPoleBalance-v0", 2, "cpu").max_episode_length == 500


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("Pendulum", [-math.pi, -1.0], [math.pi, 1.0]),
        ("CartPoleBalance", [-0.05] * 4, [0.05] * 4),
        ("CartPoleSwingUp", [-0.1, -0.05, math.pi - 0.1, -0.05], [0.1, 0.05, math.pi + 0.1, 0.05]),
        ("PointMass", [-1.25, -0.05, 0.0, 0.0], [-1.15, 0.05, 0.0, 0.0]),
    ],
)
def test_episodes_begin_everywhere_within_their_bounds(name: str, low: list[float], high: list[float]) -> None:
    env = make_tensor_env(f"torch/{name}-v0", 2000, "cpu", seed=0)
    env.reset_tensor()
    least, most = env.state.min(dim=0).values, env.state.max(dim=0).values  # type: ignore[attr-defined]
    width = th.tensor(high) - th.tensor(low)
    assert (least >= th.tensor(low) - 1e-6).all() and (most <= th.tensor(high) + 1e-6).all()
    assert (least <= th.tensor(low) + 0.02 * width + 1e-6).all() and (most >= th.tensor(high) - 0.02 * width - 1e-6).all()


def energy(state: th.Tensor) -> th.Tensor:
    """Of cart and uniform pole, without a push."""
    _, velocity, angle, spin = state.unbind(-1)
    mass, half, gravity = 0.1, 0.5, 9.8
    moving = 0.5 * 1.1 * velocity**2 + mass * half * velocity * spin * angle.cos() + (2.0 / 3.0) * mass * half**2 * spin**2
    return moving + mass * gravity * half * angle.cos()


def test_the_swinging_pole_keeps_its_energy() -> None:
    task = CartPoleSwingUp(1, "cpu")
    state = th.tensor([[0.0, 0.0, 2.0, 0.0]], dtype=th.float64)
    energies = []
    for _ in range(500):
        state, _, _ = task.transition(state, th.zeros(1, 1, dtype=th.float64))
        energies.append(energy(state).item())
    swing = 2 * 0.1 * 9.8 * 0.5  # between hanging and upright
    assert max(energies) - min(energies) < 0.1 * swing and abs(energies[-1] - energies[0]) < 0.1 * swing


def test_the_pole_can_be_swung_up() -> None:
    """By pumping energy and then balancing: an ordinary controller reaches the top, and earns most of what there is."""
    task = CartPoleSwingUp(16, "cpu")
    task.seed(0)
    task.reset_tensor()
    total = th.zeros(16)
    for _ in range(500):
        position, velocity, angle, spin = task.state.unbind(-1)
        tilt = th.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
        missing = 0.1 * 9.8 * 0.5 - (energy(task.state) - 0.55 * velocity**2)
        pump = (spin * angle.cos() * missing * -30.0).clamp(-1.0, 1.0) - 0.2 * position - 0.2 * velocity
        hold = 3.0 * tilt + 0.6 * spin + 0.1 * position + 0.2 * velocity
        step = task.step_tensor(th.where(tilt.abs() < 0.35, hold, pump).unsqueeze(-1))
        assert not step.terminated.any()
        total += step.reward
    assert total.min() > 250.0
    assert accelerations(th.tensor([[0.0, 0.0, 0.0, 0.0]]), th.zeros(1))[1].item() == 0.0


def mirrored(tensor: th.Tensor) -> th.Tensor:
    signs = th.tensor([1.0, -1.0, 1.0, -1.0][: tensor.shape[-1]])
    return tensor * signs


def test_both_ways_are_mirror_images() -> None:
    task = PointMass(1, "cpu")
    generator = th.Generator().manual_seed(0)
    state = (2.0 * th.rand(500, 4, generator=generator) - 1.0) * th.tensor([1.5, 1.0, 2.0, 2.0])
    action = 2.0 * th.rand(500, 2, generator=generator) - 1.0
    after, reward, over = task.transition(state, action)
    other, other_reward, other_over = task.transition(mirrored(state), mirrored(action))
    assert th.equal(other, mirrored(after)) and th.equal(other_over, over)  # sums and products only
    th.testing.assert_close(other_reward, reward)  # of distances, whose last bit nothing promises
    assert {True, False} == set(over.tolist())


def test_the_way_leads_above_or_below_and_not_through_the_middle() -> None:
    task = PointMass(3, "cpu")
    task.reset_tensor()
    task.state = th.tensor([[-1.2, 0.0, 0.0, 0.0]]).repeat(3, 1)
    total, ended, lengths = th.zeros(3), th.zeros(3, dtype=th.bool), th.zeros(3)
    height = th.tensor([0.6, -0.6, 0.0])
    for _ in range(150):
        position, velocity = task.state.chunk(2, dim=-1)
        goal = th.tensor(GOAL).expand(3, 2)
        on_the_way = th.stack((th.full((3,), 0.45), height), dim=-1)
        first = th.stack((th.full((3,), -0.4), height), dim=-1)
        target = th.where(position[:, :1] < -0.45, first, th.where(position[:, :1] < 0.3, on_the_way, goal))
        step = task.step_tensor((8.0 * (target - position) - 2.0 * velocity).clamp(-1.0, 1.0))
        total += th.where(ended, 0.0, step.reward)
        lengths += ~ended
        ended |= step.terminated
    assert ended.all()
    assert total[0].item() == pytest.approx(total[1].item(), rel=1e-6) and lengths[0] == lengths[1]
    assert total[0].item() > ARRIVAL + 20.0
    assert total[2].item() < CRASH + 10.0
    assert sum(radius for *_, radius in OBSTACLES) < 1.0  # the gaps are open


def test_walls_stop_the_point() -> None:
    task = PointMass(1, "cpu")
    state = th.tensor([[-1.49, 0.7, -2.0, 0.5]])
    after, _, _ = task.transition(state, th.tensor([[-1.0, 0.0]]))
    assert after[0, 0] == -1.5 and after[0, 2] == 0.0 and after[0, 3] != 0.0


# -- pictures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", tensor_env_ids())
def test_pictures_show_the_state(env_id: str) -> None:
    env = make_tensor_env(env_id, 20, "cpu", seed=0, render_mode="rgb_array")
    env.reset()
    before = env.get_images()
    for _ in range(10):
        env.step(np.ones((20, *env.action_space.shape)))  # type: ignore[misc]
    after = env.get_images()
    assert len(after) == 16 and env.metadata["render_fps"] in (20, 50)
    for one, other in zip(before, after, strict=True):
        assert one is not None and other is not None and one.dtype == np.uint8 and one.shape[2] == 3
        assert (one != other).any() and (one == 255).all(axis=2).mean() > 0.3
    whole = env.render()
    assert whole is not None and one is not None and whole.shape == (4 * one.shape[0], 4 * one.shape[1], 3)
    assert make_tensor_env(env_id, 2, "cpu").get_images() == [None, None]
    with pytest.raises(ValueError, match="Unknown render_mode='window'; known are None, rgb_array"):
        make_tensor_env(env_id, 2, "cpu", render_mode="window")


def test_a_picture_has_its_shapes_where_they_are() -> None:
    """The goal is to the right, the pole stands upwards."""
    picture = PointMass(1, "cpu").draw([-1.2, 0.6, 0.0, 0.0]).astype(int)
    height, width, _ = picture.shape
    green = np.argwhere((picture == (70, 150, 90)).all(axis=2)).mean(axis=0)
    blue = np.argwhere((picture == (60, 100, 180)).all(axis=2)).mean(axis=0)
    assert green == pytest.approx([height / 2 - 0.5, width * 0.9 - 0.5], abs=1.0)
    assert blue == pytest.approx([height * 0.2 - 0.5, width * 0.1 - 0.5], abs=1.0)
    rod = np.argwhere((Pendulum(1, "cpu").draw([0.0, 0.0]) == (204, 77, 77)).all(axis=2))
    assert rod[:, 0].mean() < 200 - 50 and abs(rod[:, 1].mean() - 199.5) < 1.0
