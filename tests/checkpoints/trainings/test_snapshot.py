"""States as tagged JSON: nothing in it depends on where our files are, and the first format is still read."""

import json
import math
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_diffusion import QSM
from sb3_diffusion.checkpoints.tagged_json import decode, encode, tag_of
from sb3_diffusion.checkpoints.trainings.format_1 import from_format_1
from sb3_diffusion.checkpoints.trainings.restoration import Restoration
from sb3_diffusion.checkpoints.trainings.snapshot import Snapshot
from tests.helpers import make


class Past:
    """An object with one attribute of every kind, which the first format described as :data:`FORMAT_1`."""

    def __init__(self, seed: int):
        random = np.random.default_rng(seed)
        self.plain: list[Any] = [seed, 2.5, None, "text", float("nan"), float("inf"), 2**70]
        self.many = [float(seed)] * 64
        self.counts = (seed,) * 70
        self.array = np.arange(3) * seed
        self.scalar = np.float32(seed)
        self.bytes = b"%d" % seed
        self.tensor = th.full((2,), float(seed))
        self.recent = deque([seed, (seed, {seed})])
        self.mapping: dict[Any, Any] = {"a": seed, (1, 2): {":odd": seed}}
        self.generator = random
        self.space = gym.spaces.Discrete(3)
        self.space.seed(seed)
        self.itself = self


def _generator_1(seed: int) -> str:
    state = np.random.default_rng(seed).bit_generator.state["state"]
    pairs = f'[["state", {state["state"]}], ["inc", {state["inc"]}]]'
    items = f'[["bit_generator", "PCG64"], ["state", {{"@": "dict", "items": {pairs}}}], ["has_uint32", 0], ["uinteger", 0]]'
    return f'{{"@": "generator", "state": {{"@": "dict", "items": {items}}}}}'


#: As it was written, for ``Past(1)`` in a module that has moved since.
FORMAT_1 = (
    '{"@": "object", "type": "tests.envs.test_snapshot.Past", "attributes": {"plain": {"@": "list", "items": '
    '[1, 2.5, null, "text", NaN, Infinity, 1180591620717411303424]}, '
    '"many": {"@": "list", "numbers": {"@": "array", "dtype": "<f8", "shape": [64], "offset": 0}}, '
    '"counts": {"@": "tuple", "numbers": {"@": "array", "dtype": "<i8", "shape": [70], "offset": 512}}, '
    '"array": {"@": "array", "dtype": "<i8", "shape": [3], "offset": 1072}, '
    '"scalar": {"@": "number", "value": {"@": "array", "dtype": "<f4", "shape": [], "offset": 1096}}, '
    '"bytes": {"@": "bytes", "value": {"@": "array", "dtype": "|u1", "shape": [1], "offset": 1100}}, '
    '"tensor": {"@": "tensor", "value": {"@": "array", "dtype": "<f4", "shape": [2], "offset": 1101}}, '
    '"recent": {"@": "deque", "items": [1, {"@": "tuple", "items": [1, {"@": "set", "items": [1]}]}]}, '
    '"mapping": {"@": "dict", "items": [["a", 1], [{"@": "tuple", "items": [1, 2]}, {"@": "dict", "items": [[":odd", 1]]}]]}, '
    f'"generator": {_generator_1(1)}, "space": {{"@": "space", "generator": {_generator_1(1)}, "parts": []}}, '
    '"itself": {"@": "seen"}}}'
).encode()
ARRAYS_1 = b"".join(
    (
        np.ones(64).tobytes(),
        np.ones(70, np.int64).tobytes(),
        np.arange(3, dtype=np.int64).tobytes(),
        np.float32(1).tobytes(),
        b"1",
        np.ones(2, np.float32).tobytes(),
    )
)


def assert_is_past_1(past: Past) -> None:
    assert past.plain[:4] == [1, 2.5, None, "text"] and math.isnan(past.plain[4]) and past.plain[5:] == [math.inf, 2**70]
    assert [type(item) for item in past.plain] == [int, float, type(None), str, float, float, int]
    assert past.many == [1.0] * 64 and past.counts == (1,) * 70 and past.array.tolist() == [0, 1, 2]
    assert type(past.scalar) is np.float32 and past.scalar == 1 and past.bytes == b"1" and past.tensor.tolist() == [1.0, 1.0]
    assert past.recent == deque([1, (1, {1})]) and past.mapping == {"a": 1, (1, 2): {":odd": 1}}
    assert past.generator.normal() == np.random.default_rng(1).normal() and past.itself is past
    again = gym.spaces.Discrete(3, seed=1)
    assert [past.space.sample() for _ in range(5)] == [again.sample() for _ in range(5)]


@pytest.mark.parametrize("written", ["today", "in the first format"])
def test_every_kind_is_put_back(written: str) -> None:
    past = Past(2)
    today = written == "today"
    node = decode(*encode(Snapshot(Past(1)).node)) if today else decode(FORMAT_1, ARRAYS_1, from_format_1)
    assert Restoration(past, node).mismatches == []
    assert_is_past_1(past)


def test_the_text_is_standard_json_in_one_dialect() -> None:
    text, _ = encode(Snapshot(Past(1)).node)
    tags = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if (tag := tag_of(value)) is not None:
            assert len(value) == 1, "a tag stands alone"
            tags.add(tag)
        return value

    json.loads(text, parse_constant=pytest.fail, object_pairs_hook=collect)
    assert tags == {
        *(":state", ":numbers", ":array", ":float", ":tuple", ":element", ":bytes", ":tensor", ":deque", ":set", ":items"),
        *(":generator", ":space", ":seen"),
    }


def test_no_module_of_ours_is_named() -> None:
    model = make(QSM)
    model.learn(5)
    for target in (model.replay_buffer, model.env):
        text, _ = encode(Snapshot(target, skip=lambda owner, name, value: name.startswith("_")).node)
        assert "sb3_diffusion.data" not in text.decode() and "tests.environments" not in text.decode()


def test_another_class_is_refused() -> None:
    class Other:
        pass

    node = Snapshot(Past(1)).node
    assert node[":state"]["of"] == "tests.Past"
    assert "(Other) is not tests.Past" in Restoration(Other(), node).mismatches[0]
    node[":state"]["of"] = "another.Past"
    assert "(Past) is not another.Past" in Restoration(Past(1), node).mismatches[0]
