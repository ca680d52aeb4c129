"""Modes of PyTorch that a training cannot run in, refused before they do harm."""

import torch as th


def check_surroundings(device: th.device) -> None:
    """
    :param device: Device of the networks
    :raises RuntimeError: Within autocast, ``no_grad`` or ``inference_mode``, naming it and the remedy
    """
    if th.is_autocast_enabled(device.type):
        raise RuntimeError(
            f"learn() and train() do not run under torch.autocast('{device.type}'): leave its block, and pass "
            "policy_kwargs={'particle_precision': 'bfloat16'} for the parts that may be coarser."
        )
    if not th.is_grad_enabled():
        mode = "inference_mode" if th.is_inference_mode_enabled() else "no_grad"
        raise RuntimeError(f"learn() and train() need gradients: call them outside torch.{mode}().")
