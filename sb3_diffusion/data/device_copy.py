"""The copy of a replay buffer's rows on the device of the networks, which receives what is new when it is asked for."""

import torch as th

STORAGES = ("auto", "host", "device")
# share of an accelerator's free memory that storage="auto" takes for itself
_DEVICE_SHARE = 0.25
# rows that the copy has room for at first
_FIRST_ROWS = 16_384


class DeviceCopy:
    """
    Copies of rows of bytes, where these are worth keeping.

    :param rows: The rows on the host, ``(positions * n_envs, size of a row)``
    :param n_envs: Rows of a position
    :param storage: Whether there is a copy: ``"device"``, ``"host"`` for none, or ``"auto"`` to decide by size
    """

    def __init__(self, rows: th.Tensor, n_envs: int, storage: str):
        self._rows, self._n_envs, self._storage = rows, n_envs, storage
        self._n_positions = len(rows) // n_envs
        self._copied: th.Tensor | None = None
        self._device: th.device | None = None
        self._wanted = False
        self.n_new = 0
        """Positions that were written since the last look; as many as there are if all of them may have been."""

    def synchronized(self, device: th.device, used: int, pos: int, further: int) -> th.Tensor | None:
        """
        :param device: Where the rows are needed
        :param used: Positions with contents
        :param pos: The position that is written next
        :param further: How many from there on hold something new as well
        :return: The rows there, up to date; ``None`` if they are not kept there
        """
        if self._device != device:
            self._device, self._copied = device, None
            self._wanted = self._storage == "device" or (self._storage == "auto" and self._fits(device))
        if not self._wanted:
            return None
        if self._copied is None or len(self._copied) < used * self._n_envs:
            # grows with the contents
            capacity = min(self._n_positions, max(2 * used, _FIRST_ROWS // self._n_envs))
            self._copied = th.empty(capacity * self._n_envs, self._rows.shape[1], dtype=th.uint8, device=device)
            self.n_new = self._n_positions
        for first, last in self._new_ranges(used, pos, further):
            rows = slice(first * self._n_envs, last * self._n_envs)
            self._copied[rows].copy_(self._rows[rows], non_blocking=True)
        self.n_new = 0
        return self._copied

    def _new_ranges(self, used: int, pos: int, further: int) -> list[tuple[int, int]]:
        """Ranges of positions that were written since the last look."""
        if self.n_new == 0:
            return []
        start, end = pos - self.n_new, pos + further
        if self.n_new >= used or end - start >= used:
            return [(0, used)]
        return [(start, end)] if start >= 0 else [(start + self._n_positions, self._n_positions), (0, end)]

    def _fits(self, device: th.device) -> bool:
        if device.type != "cuda":
            return False
        free, _ = th.cuda.mem_get_info(device)
        return self._rows.nbytes <= _DEVICE_SHARE * free
