"""How often something runs per second, and how fast this machine multiplies matrices."""

import time
from collections.abc import Callable

import torch as th

CEILING_SIZE = 256


def synchronize(device: str) -> None:
    """
    Wait for the device.

    :param device: Device of the benchmark
    """
    if th.device(device).type == "cuda":
        th.cuda.synchronize()


def rate(work: Callable[[int], object], device: str, seconds: float, start: int = 1) -> tuple[float, float]:
    """
    Repetitions per second, measured over at least the given time.

    :param work: Function of the number of repetitions
    :param device: Device to wait for
    :param seconds: Time to spend
    :param start: First guess of the number of repetitions; it is doubled until they fill the time
    :return: Repetitions per second, and the cores that this process kept busy meanwhile
    """
    count = start
    while True:
        synchronize(device)
        begin, processor = time.perf_counter(), time.process_time()
        work(count)
        synchronize(device)
        elapsed, processor = time.perf_counter() - begin, time.process_time() - processor
        if elapsed >= seconds:
            return count / elapsed, processor / elapsed
        count = max(2 * count, int(1.1 * count * seconds / elapsed))


def ceiling(device: str, seconds: float) -> float:
    """
    Speed of square float32 matrix products in FLOP per second.

    :param device: Device of the benchmark
    :param seconds: Time to spend
    """
    left, right = th.rand(2, CEILING_SIZE, CEILING_SIZE, device=device)
    out = th.empty_like(left)

    def multiply(count: int) -> None:
        for _ in range(count):
            th.mm(left, right, out=out)

    multiply(100)
    return 2 * CEILING_SIZE**3 * rate(multiply, device, seconds, start=100)[0]
