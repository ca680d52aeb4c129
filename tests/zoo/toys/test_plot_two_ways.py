"""The picture of two ways round a disc: demonstrations, what counts as arriving, and the command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.toys import plot_two_ways
from zoo.toys.two_ways import Episodes, demonstrations


def test_demonstrators_take_both_ways_and_arrive() -> None:
    episodes, data = demonstrations(40, 0)
    ways = episodes.arrivals()
    assert None not in ways and min(ways.count("above"), ways.count("below")) >= 10
    assert len(data) == sum(map(len, episodes.actions)) and all(episodes.terminated)
    # what was chosen cannot be seen: both begin alike
    starts = {
        way: np.mean([path[0] for path, own in zip(episodes.observations, ways, strict=True) if own == way], 0) for way in ways
    }
    np.testing.assert_allclose(starts["above"], starts["below"], atol=0.05)


@pytest.mark.parametrize(
    ("height", "last_reward", "way"), [(0.6, 10.3, "above"), (-0.6, 10.3, "below"), (0.6, -4.8, None), (0.6, 0.1, None)]
)
def test_a_way_counts_if_it_ends_at_the_goal(height: float, last_reward: float, way: str | None) -> None:
    path = np.array([[-1.2, 0.0, 0.0, 0.0], [0.0, height, 0.0, 0.0], [1.2, 0.0, 0.0, 0.0]])
    episodes = Episodes([path], [np.zeros((2, 2))], [np.array([0.3, last_reward])], [True])
    assert episodes.arrivals() == [way]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ways.png"
    tiny = [
        "--steps",
        "1",
        "--n-envs",
        "64",
        "--pretrain-updates",
        "2",
        "--demonstrations",
        "8",
        "--episodes",
        "4",
        "--dpi",
        "40",
    ]
    monkeypatch.setattr("sys.argv", ["plot_two_ways.py", "--algo", "tensor_ppo", "genpo", *tiny, "--output", str(output)])
    plot_two_ways.main()
    printed = capsys.readouterr().out
    assert "demonstrations: " in printed and "PPO, imitation: " in printed and "PPO, tuned: " in printed
    assert "GenPO, from nothing: " in printed and "GenPO, imitation" not in printed
    with Image.open(output) as picture:
        assert picture.size[0] > picture.size[1] > 50 and "plot_two_ways.py" in picture.text["Comment"]  # type: ignore[attr-defined]


def test_another_format_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plot_two_ways.py", "--output", "ways.svg"])
    with pytest.raises(SystemExit) as error:
        plot_two_ways.main()
    assert error.value.code == 2 and "--output ways.svg" in capsys.readouterr().err
