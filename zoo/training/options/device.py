"""The device that a command computes on."""

import torch as th


def check_device(name: str) -> None:
    """
    :param name: Value of ``--device``
    :raises ValueError: If there is no such device here
    """
    if name == "auto":
        return
    try:
        device = th.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name} is no device of PyTorch; take auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not th.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch {th.__version__} sees no graphics card here; take auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= th.cuda.device_count():
        raise ValueError(f"--device {name}: there are {th.cuda.device_count()} graphics cards, counted from 0.")
    try:
        th.zeros(1, device=device).cpu()
    except Exception as error:  # every kind of device has errors of its own
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"--device {name} does not work here ({reason}); take auto or cpu.") from error
