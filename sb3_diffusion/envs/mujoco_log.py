"""Keep MuJoCo's notice about a deprecated attribute of its own bundled models out of the console and the working folder."""

import importlib.util
import logging

_EXPECTED = "'settotalmass' is deprecated"


def quiet_mujoco() -> None:
    """
    Drop the deprecation notice that compiling a cheetah model prints (and writes to ``MUJOCO_LOG.TXT``) every time.

    All other warnings of the simulator go to the ``mujoco`` logger. Does nothing when MuJoCo is not installed. Call it once
    per process, and again after importing dm_control, which installs a handler of its own.
    """
    if importlib.util.find_spec("mujoco") is None:
        return
    import mujoco

    mujoco.set_mju_user_warning(_forward)


def _forward(message: str) -> None:
    if _EXPECTED not in message:
        logging.getLogger("mujoco").warning(message)
