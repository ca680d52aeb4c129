"""The rollout buffer: what is stored is a copy, and minibatches are what they should be."""

import torch as th

from sb3_diffusion.data.rollout import TensorRolloutBuffer


def filled(n_steps: int = 3, n_envs: int = 4) -> TensorRolloutBuffer:
    buffer = TensorRolloutBuffer(n_steps, n_envs, th.device("cpu"))
    for step in range(n_steps):
        row = th.arange(n_envs) + 10 * step
        buffer.add(
            step, observations={"a": row.float().unsqueeze(1), "b": row.byte()}, actions=row.unsqueeze(1), truncated=row > 12
        )
        buffer.add_fields(step, {"noise": row.float().view(-1, 1, 1).expand(-1, 2, 3)})
    for name in ("values", "advantages", "returns"):
        buffer[name] = th.zeros(n_steps, n_envs)
    return buffer


def test_rows_go_time_by_time() -> None:
    batch = filled().rows(th.tensor([0, 5, 11]))
    assert batch.observations["b"].tolist() == [0, 11, 23]
    assert batch.observations["b"].dtype == th.uint8
    assert batch.actions.tolist() == [[0], [11], [23]]
    assert batch.truncated.tolist() == [False, False, True]
    assert batch.fields["noise"].shape == (3, 2, 3)


def test_what_is_stored_is_a_copy() -> None:
    buffer = TensorRolloutBuffer(1, 2, th.device("cpu"))
    reward, field = th.ones(2), th.ones(2, 1)
    buffer.add(0, rewards=reward)
    buffer.add_fields(0, {"log_prob": field})
    reward += 5.0
    field += 5.0
    assert buffer["rewards"].tolist() == [[1.0, 1.0]] and buffer.fields["log_prob"].tolist() == [[[1.0], [1.0]]]


def test_minibatches_have_one_size_and_share_no_row() -> None:
    buffer = filled()
    batches = list(buffer.minibatches(5, th.randperm(12)))
    assert [len(batch.actions) for batch in batches] == [5, 5]
    seen = [action for batch in batches for action in batch.actions.flatten().tolist()]
    assert len(set(seen)) == 10


def test_chunks_are_all_rows_in_their_order() -> None:
    buffer = filled()
    assert [len(part) for part in buffer.chunks("actions", 5)] == [5, 5, 2]
    together = th.cat([part["b"] for part in buffer.chunks("observations", 5)])
    assert together.tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert buffer.flat("actions").data_ptr() == buffer["actions"].data_ptr()


def test_the_memory_is_used_again() -> None:
    buffer = filled()
    before = buffer["actions"].data_ptr(), buffer.fields["noise"].data_ptr()
    buffer.add(0, actions=th.full((4, 1), 7))
    buffer.add_fields(0, {"noise": th.zeros(4, 2, 3)})
    assert before == (buffer["actions"].data_ptr(), buffer.fields["noise"].data_ptr())
    assert buffer["actions"][0].flatten().tolist() == [7] * 4
