"""Ensembles: independent members, distributional heads and their projections."""

import math
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.regression import symexp, symlog, two_hot

BATCH, FEATURES, ACTIONS = 8, 5, 2
Kind = ScalarCritics | GaussianCritics | CategoricalCritics
CRITICS: list[type[Kind]] = [ScalarCritics, GaussianCritics, CategoricalCritics]


@pytest.fixture(params=CRITICS)
def critics(request: pytest.FixtureRequest) -> Kind:
    return request.param(FEATURES, ACTIONS, n_critics=3, net_arch=(16, 16), layer_norm=True)


def test_member_equals_stand_alone_critic(critics: Kind) -> None:
    features, actions = th.randn(BATCH, FEATURES), th.randn(BATCH, ACTIONS)
    together = critics.q(actions, critics.encode_state(features))
    for i in range(3):
        alone = critics.member(i)
        assert alone.n_critics == 1
        got = alone.q(actions, alone.encode_state(features))
        th.testing.assert_close(got, together[i : i + 1], rtol=1e-6, atol=1e-6)
        with th.no_grad():
            for parameter in alone.parameters():
                parameter.zero_()
    th.testing.assert_close(critics.q(actions, critics.encode_state(features)), together)
    with pytest.raises(ValueError, match="3 members"):
        critics.member(3)


def test_members_are_independent(critics: Kind) -> None:
    features, actions = th.randn(BATCH, FEATURES), th.randn(BATCH, 4, ACTIONS)
    q = critics.q(actions, critics.encode_state(features))
    assert (q[0] - q[1]).abs().max() > 1e-3, "members must differ at the start"
    names, parameters = zip(*critics.named_parameters(), strict=True)
    assert all(parameter.shape[0] == 3 for parameter in parameters)
    of_first = th.autograd.grad(q[0].square().sum(), parameters, retain_graph=True, allow_unused=True)
    of_all = th.autograd.grad(q.square().sum(), parameters, allow_unused=True)
    for name, first, all_members in zip(names, of_first, of_all, strict=True):
        # the expected value of a Gaussian critic ignores its second output, but not a whole parameter
        assert first is not None and first[0].any() and not first[1:].any(), name
        assert all_members.flatten(1).any(dim=1).all(), name


def test_gaussian_running_std_is_saved() -> None:
    critics = GaussianCritics(FEATURES, ACTIONS)
    assert critics.running_std.shape == () and critics.running_std == 1.0
    critics.running_std.fill_(0.3)
    other = GaussianCritics(FEATURES, ACTIONS)
    other.load_state_dict(critics.state_dict())
    assert math.isclose(other.running_std.item(), 0.3, rel_tol=1e-6)


def test_gaussian_std_is_softplus_without_floor() -> None:
    mean, std = GaussianCritics.moments(th.tensor([[1.0, -30.0], [2.0, 0.0]]))
    th.testing.assert_close(mean, th.tensor([1.0, 2.0]))
    th.testing.assert_close(std, F.softplus(th.tensor([-30.0, 0.0])))
    assert std[0] > 0


def test_state_dict_holds_learned_floats_only(critics: Kind) -> None:
    extra = set(critics.state_dict()) - {name for name, _ in critics.named_parameters()}
    assert extra == ({"running_std"} if isinstance(critics, GaussianCritics) else set())
    assert all(tensor.dtype == th.float32 for tensor in critics.state_dict().values())


class TestProjection:
    """The projection of C51."""

    n_atoms = 21

    def critics(self, **options: Any) -> CategoricalCritics:
        return CategoricalCritics(FEATURES, ACTIONS, net_arch=(8,), n_atoms=self.n_atoms, v_min=-5.0, v_max=5.0, **options)

    def test_keeps_mass_for_any_target(self) -> None:
        critics = self.critics()
        probabilities = th.randn(2, 64, self.n_atoms).softmax(-1)
        reward, done = 4 * th.randn(64, 1), (th.rand(64, 1) < 0.3).float()
        projected = critics.project(probabilities, reward + 0.99 * (1 - done) * critics.atom_values)
        assert projected.shape == (2, 64, self.n_atoms) and projected.min() >= 0
        th.testing.assert_close(projected.sum(-1), th.ones(2, 64))

    def test_is_the_identity_on_the_atoms(self) -> None:
        critics = self.critics()
        probabilities = th.randn(10, self.n_atoms).softmax(-1)
        th.testing.assert_close(critics.project(probabilities, critics.atoms), probabilities, rtol=1e-5, atol=1e-6)
        # shifted by whole atoms: the mass that leaves the support gathers at its end
        shifted = critics.project(probabilities, critics.atoms + 1.0)
        th.testing.assert_close(shifted[:, 2:-1], probabilities[:, :-3], rtol=1e-5, atol=1e-6)
        th.testing.assert_close(shifted[:, -1], probabilities[:, -3:].sum(-1), rtol=1e-5, atol=1e-6)
        assert shifted[:, :2].abs().max() < 1e-6

    def test_far_targets_go_to_the_ends(self) -> None:
        critics = self.critics()
        probabilities = th.full((self.n_atoms,), 1.0 / self.n_atoms)
        low = critics.project(probabilities, th.full((self.n_atoms,), -1e6))
        high = critics.project(probabilities, th.full((self.n_atoms,), 1e6))
        th.testing.assert_close(low, F.one_hot(th.tensor(0), self.n_atoms).float())
        th.testing.assert_close(high, F.one_hot(th.tensor(self.n_atoms - 1), self.n_atoms).float())

    def test_keeps_the_mean_inside_the_support(self) -> None:
        critics = self.critics()
        probabilities = th.randn(64, self.n_atoms).softmax(-1)
        targets = 0.3 + 0.9 * critics.atoms
        mean = (critics.project(probabilities, targets) * critics.atoms).sum(-1)
        th.testing.assert_close(mean, (probabilities * targets).sum(-1), rtol=1e-5, atol=1e-5)

    def test_single_target_is_two_hot(self) -> None:
        critics = self.critics()
        values = th.tensor([-7.0, -5.0, -4.9, 0.0, 0.25, 5.0, 9.0])
        got = critics.project(th.ones(7, 1), values.unsqueeze(-1))
        th.testing.assert_close(got, two_hot(values, -5.0, 5.0, self.n_atoms))
        th.testing.assert_close(got @ critics.atoms, values.clamp(-5.0, 5.0), rtol=1e-5, atol=1e-6)

    def test_symlog_atoms(self) -> None:
        critics = self.critics(symlog_values=True)
        probabilities = th.randn(10, self.n_atoms).softmax(-1)
        th.testing.assert_close(critics.project(probabilities, critics.atom_values), probabilities, rtol=1e-4, atol=1e-5)
        two = critics.project(th.ones(1), th.tensor([30.0]))
        th.testing.assert_close(symexp(two @ critics.atoms), th.tensor(30.0), rtol=1e-4, atol=1e-4)

    def test_value_and_log_probs(self) -> None:
        critics = self.critics()
        logits = th.randn(2, 4, self.n_atoms)
        th.testing.assert_close(critics.log_probs(logits).exp(), logits.softmax(-1))
        th.testing.assert_close(critics.value(logits), (logits.softmax(-1) * critics.atoms).sum(-1))


def test_symlog_round_trip() -> None:
    x = th.linspace(-50, 50, 101, dtype=th.float64)
    th.testing.assert_close(symexp(symlog(x)), x)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n_critics"):
        ScalarCritics(FEATURES, ACTIONS, n_critics=0)
    with pytest.raises(ValueError, match="n_atoms"):
        CategoricalCritics(FEATURES, ACTIONS, n_atoms=1)
    with pytest.raises(ValueError, match="v_min"):
        CategoricalCritics(FEATURES, ACTIONS, v_min=1.0, v_max=1.0)
    with pytest.raises(ValueError, match="time_embedding"):
        ScalarCritics(FEATURES, ACTIONS).encode_time(th.zeros(1))
    with pytest.raises(ValueError, match="mlp, residual"):
        ScalarCritics(FEATURES, ACTIONS, backbone="unknown")
    with pytest.raises(TypeError, match="activation"):
        ScalarCritics(FEATURES, ACTIONS, activation=nn.ReLU())  # type: ignore[arg-type]
