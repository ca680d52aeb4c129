"""
Compiled CPU kernels: whole networks and diffusion chains in one call each.

``mlp.cpp`` is compiled with the machine's C++ compiler when it is first needed (a few seconds), for the machine's own
instruction set, and kept in ``~/.cache/sb3_diffusion`` (``$XDG_CACHE_HOME``). Without a compiler, everything runs through
PyTorch's own operations after one warning. ``SB3_DIFFUSION_KERNELS=0`` switches the kernels off.

The kernels take float32 CPU tensors; callers ask :func:`usable`. Whole networks and whole chains are single nodes of autograd,
which keep what their backward pass needs. They have no second derivative.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch as th
from torch import nn
from torch.autograd import forward_ad

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
ACTIVATIONS = {"relu": 1, "mish": 2}
PANEL = 32  # columns of the widest tile
_switched_off = False


#: A module, and the names of its parameters that are a layer's weight and bias (None for no bias).
KernelLayer = tuple[nn.Module, str, str | None]


class KernelError(RuntimeError):
    """The kernels could not be compiled or loaded."""


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class _Network(ctypes.Structure):
    _fields_ = (("layers", ctypes.POINTER(_Layer)), ("n_layers", ctypes.c_int64), ("activation", ctypes.c_int64))


def usable(*tensors: th.Tensor, differentiable: bool = False) -> bool:
    """
    Whether the kernels may work on these tensors here and now: float32 on the CPU, outside compilers and forward mode, and
    outside autograd unless the caller takes part in it.

    :param tensors: representatives of inputs and weights
    :param differentiable: whether the caller's kernel has a backward pass
    """
    # forward mode works without gradients being enabled
    if (th.is_grad_enabled() and not differentiable) or forward_ad._current_level >= 0:
        return False
    if th.compiler.is_compiling() or _switched_off:
        return False
    if not all(tensor.dtype == th.float32 and tensor.is_cpu for tensor in tensors) or th.is_autocast_enabled("cpu"):
        return False
    return load_kernels() is not None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Use PyTorch's operations only, for example to count them."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, built if necessary; ``None`` (after one warning) where that is impossible."""
    if os.environ.get("SB3_DIFFUSION_KERNELS", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(build()))
    except (KernelError, OSError) as error:
        warnings.warn(
            f"The compiled CPU kernels are not available, continuing with PyTorch's operations (sampling is slower): {error} "
            "SB3_DIFFUSION_KERNELS=0 silences this.",
            stacklevel=2,
        )
        return None
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    network = ctypes.POINTER(_Network)
    signatures: dict[str, list[Any]] = {
        "evaluate": [network, pointer, integer, *[pointer] * 4, integer, integer],
        "pull_back": [network, *[pointer] * 5, *[integer] * 3],
        "run_chain": [
            network,
            pointer,
            integer,
            pointer,
            *[pointer, integer] * 2,
            real,
            real,
            *[pointer] * 3,
            integer,
            integer,
        ],
        "encode_and_run_chain": [
            *[network, pointer, pointer, integer],
            *[network, pointer, pointer],
            network,
            *[pointer, integer] * 2,
            real,
            real,
            *[pointer] * 2,
            integer,
            integer,
        ],
        "pull_back_chain": [network, pointer, integer, real, real, *[pointer] * 6, *[integer] * 3],
        "mish": [*[pointer] * 3, integer, integer],
    }
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def build(folder: Path | None = None) -> Path:
    """
    Compile the kernels unless that has been done.

    :param folder: where the library is kept
    :return: path of the shared library
    :raises KernelError: if there is no compiler, or it fails
    """
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_diffusion"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise KernelError("no C++ compiler found; install g++ or clang++, or set CXX.")
    # a home folder may be shared by different machines
    key = "\n".join((SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, _processor()))
    target = folder / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / target.name
            _compile(compiler, output)
            output.replace(target)  # in one piece, whatever other processes do
    except OSError as error:
        raise KernelError(f"{folder} cannot be written: {error}.") from error
    return target


def _compile(compiler: str, output: Path) -> None:
    message = ""
    for flags in (("-fopenmp",), ()):  # Apple's compiler has no OpenMP
        command = [*compiler.split(), *FLAGS, *flags, "-shared", "-fPIC", "-o", str(output), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler} did not run: {error}.") from error
        if done.returncode == 0:
            return
        message = message or done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
    raise KernelError(f"{compiler} failed: {message}.")


def _processor() -> str:
    """What ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags: list[str] = []
    if cpuinfo.is_file():
        flags = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "model name"))]
    return "\n".join((platform.machine(), platform.processor(), *flags[:2]))


def _padded(columns: int) -> int:
    return columns + -columns % PANEL


def _pad(x: th.Tensor) -> th.Tensor:
    """Rows as the kernels read them: contiguous, with zeros up to a multiple of the widest tile."""
    missing = _padded(x.shape[-1]) - x.shape[-1]
    return nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def mish(x: th.Tensor, out: th.Tensor, slope: th.Tensor | None = None) -> None:
    """
    Mish and its derivative in one pass.

    :param x: contiguous, any shape
    :param out: takes the values; may be ``x``
    :param slope: takes the derivative
    """
    kernels = load_kernels()
    assert kernels is not None
    kernels.mish(x.data_ptr(), out.data_ptr(), None if slope is None else slope.data_ptr(), x.numel(), th.get_num_threads())


class Network:
    """
    A multi-layer perceptron as the kernels see it. It follows its parameters when they move in memory.

    :param layers: for each layer the module that owns the parameters, and the names of weight ``(in, out)`` and bias
        ``(out,)``, or ``(members, in, out)`` and ``(members, 1, out)``; that of the first is part of the context
    :param activation: a key of :data:`ACTIVATIONS`, used behind all layers but the last
    :param n_members: number of stacked members, ``None`` for a single network
    """

    def __init__(self, layers: Sequence[KernelLayer], activation: str, n_members: int | None = None):
        # the dictionaries skip nn.Module's slow attribute lookup
        self._weights: list[tuple[Any, str]] = [(module._parameters, weight) for module, weight, _ in layers]
        biases: list[tuple[Any, str | None]] = [(module._parameters, bias) for module, _, bias in layers]
        self._biases = [(i, parameters, name) for i, (parameters, name) in enumerate(biases) if name is not None]
        self._activation = ACTIVATIONS[activation]
        self.n_members = n_members
        self._addresses: list[int] = []
        self._members: list[tuple[_Network, Any]] = []
        shapes: list[tuple[int, int]] = [tuple(parameters[name].shape[-2:]) for parameters, name in self._weights]
        self.output_dim = shapes[-1][1]
        self.first_width = _padded(shapes[0][1])
        self._n_hidden, self._width = len(shapes) - 1, max(_padded(width) for _, width in shapes)
        #: for each parameter the offset and strides of its gradient in a row of ``n_gradients`` numbers
        self._places: list[tuple[int, tuple[int, int]]] = []
        self.n_gradients = 0
        for rows, columns in shapes[:-1]:
            self._places.append((self.n_gradients, (_padded(columns), 1)))
            self.n_gradients += rows * _padded(columns)
        self._places.append((self.n_gradients, (1, _padded(shapes[-1][0]))))  # by output
        self.n_gradients += shapes[-1][1] * _padded(shapes[-1][0])
        for i, (_, columns) in enumerate(shapes[1:], start=1):
            if biases[i][1] is not None:
                self._places.append((self.n_gradients, (1, 1)))
            self.n_gradients += _padded(columns)

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and pickles of the owner make their own when they need it
        return type(None), ()

    def parameters(self) -> list[th.Tensor]:
        """All weights in order, then the biases of the layers that have one."""
        weights = [parameters[name] for parameters, name in self._weights]
        return weights + [parameters[name] for _, parameters, name in self._biases]

    def members(self) -> list[tuple[_Network, Any]]:
        """The structures of all members, with what has to stay alive beside them."""
        addresses = [parameter.data_ptr() for parameter in self.parameters()]
        if addresses != self._addresses:
            self._members = [self._view(addresses, member) for member in range(self.n_members or 1)]
            self._addresses = addresses
        return self._members

    def _view(self, addresses: list[int], member: int) -> tuple[_Network, Any]:
        layers = (_Layer * len(self._weights))()
        for layer, address, (parameters, name) in zip(layers, addresses, self._weights, strict=False):
            layer.inputs, layer.outputs = parameters[name].shape[-2:]
            layer.weight = address + 4 * member * layer.inputs * layer.outputs
        for (i, _, _), address in zip(self._biases, addresses[len(layers) :], strict=True):
            layers[i].bias = address + 4 * member * layers[i].outputs
        return _Network(layers, len(layers), self._activation), layers

    def new_record(self, like: th.Tensor, *rows: int) -> th.Tensor:
        """Memory for what a backward pass needs: ``([members,] 2, hidden layers, *rows, width)``, values and slopes."""
        return like.new_empty((*self._lead, 2, self._n_hidden, *rows, self._width))

    def new_chain_record(self, x: th.Tensor, n_steps: int) -> tuple[th.Tensor, th.Tensor]:
        """The same for a chain: predictions ``(n_steps, rows, in)``, and the record of all evaluations."""
        rows = x.numel() // x.shape[-1]
        return x.new_empty((n_steps, rows, x.shape[-1])), self.new_record(x, n_steps, rows)

    def evaluate(self, x: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        :param x: ``(rows, in)``, the same for all members
        :param context: what the first layer adds, ``(contexts, width)``, or ``(members, contexts, width)``; each serves
            ``rows / contexts`` consecutive rows
        :return: ``(rows, output_dim)`` or ``(members, rows, output_dim)``
        """
        if th.is_grad_enabled():
            return _Evaluation.apply(self, x, context, *self.parameters())  # type: ignore[no-any-return]
        return self._evaluate(x, context)

    def evaluate_with_gradient(self, x: th.Tensor, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Without autograd, for constants of a loss.

        :param x: see :meth:`evaluate`
        :param context: see :meth:`evaluate`
        :return: what :meth:`evaluate` returns, and the gradient of the first output with respect to ``x``,
            ``(rows, in)`` or ``(members, rows, in)``
        """
        gradient = x.new_empty((*self._lead, *x.shape))
        return self._evaluate(x, context, gradient), gradient

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self.n_members is None else (self.n_members,)

    def _evaluate(
        self, x: th.Tensor, context: th.Tensor, gradient: th.Tensor | None = None, record: th.Tensor | None = None
    ) -> th.Tensor:
        kernels, threads = load_kernels(), th.get_num_threads()
        assert kernels is not None
        x, context = x.contiguous(), _pad(context)
        (rows, inputs), contexts = x.shape, context.shape[-2]
        out = x.new_empty((*self._lead, rows, self.output_dim))
        for m, (network, _) in enumerate(self.members()):
            kernels.evaluate(
                network,
                context.data_ptr() + 4 * m * contexts * context.shape[-1],
                rows // max(contexts, 1),
                x.data_ptr(),
                out.data_ptr() + 4 * m * rows * self.output_dim,
                None if gradient is None else gradient.data_ptr() + 4 * m * rows * inputs,
                None if record is None else record.data_ptr() + 4 * m * record[0].numel(),
                rows,
                threads,
            )
        return out

    def run_chain(
        self,
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor:
        """
        Run a reverse chain.

        :param x: starting points ``(..., in)``
        :param context: encoded states ``(contexts, width)``; each serves ``rows / contexts`` consecutive rows of ``x``
        :param times: encoded times, ``(n_steps, width)``
        :param steps: coefficients, one row per evaluation; the columns are the members of ``Step`` in ``mlp.cpp``
        :param draws: standard normal noise ``(n_noisy, ..., in)`` of the first steps, constants
        :param clip: bounds of the state where a step clips it
        :return: all points at which the network was evaluated, and the sample as the last one, ``(n_steps + 1, ..., in)``
        """
        if th.is_grad_enabled():
            return _Chain.apply(self, steps, draws, clip, x, context, times, *self.parameters())  # type: ignore[no-any-return]
        return self._run_chain(steps, draws, clip, x, context, times)

    def _run_chain(
        self,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        kept: tuple[th.Tensor, th.Tensor] | None = None,
    ) -> th.Tensor:
        kernels = load_kernels()
        assert kernels is not None
        points = x.new_empty((len(steps) + 1, *x.shape))
        points[0] = x
        context, times = _pad(context), _pad(times)
        rows = x.numel() // x.shape[-1]
        draws_address, n_noisy = None, 0
        if draws is not None:
            draws = draws.contiguous()
            draws_address, n_noisy = draws.data_ptr(), len(draws)
        ((network, _),) = self.members()
        kernels.run_chain(
            network,
            context.data_ptr(),
            rows // max(context.shape[0], 1),
            times.data_ptr(),
            steps.data_ptr(),
            len(steps),
            draws_address,
            n_noisy,
            *clip,
            points.data_ptr(),
            *((None, None) if kept is None else (kept[0].data_ptr(), kept[1].data_ptr())),
            rows,
            th.get_num_threads(),
        )
        return points

    def split_gradients(self, sums: th.Tensor, needs: Sequence[bool]) -> list[th.Tensor | None]:
        """
        What a backward pass has summed up, see ``Gradients`` in ``mlp.cpp``.

        :param sums: contiguous ``([members,] threads, numbers)``, the first thread's are the result
        :param needs: which of :meth:`parameters` need a gradient
        :return: gradients of :meth:`parameters`
        """
        lead = () if self.n_members is None else (sums.stride(0),)
        return [
            sums.as_strided(parameter.shape, (*lead, *strides)[-parameter.dim() :], offset) if need else None
            for parameter, (offset, strides), need in zip(self.parameters(), self._places, needs, strict=True)
        ]


class EncodedChain:
    """
    A chain together with the networks that encode its states and times, in one call and without autograd.

    :param network: the network of the chain
    :param states: network that encodes the states
    :param times: network that encodes the times
    :param biases: owners of the biases ``bias`` of the first layers of these two
    """

    def __init__(self, network: Network, states: Network, times: Network, biases: tuple[nn.Module, nn.Module]):
        self._networks = (network, states, times)
        self._biases: list[Any] = [module._parameters for module in biases]

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and pickles of the owner make their own when they need it
        return type(None), ()

    def run(
        self,
        x: th.Tensor,
        features: th.Tensor,
        embedded: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor:
        """
        See :meth:`Network.run_chain`.

        :param x: starting points ``(..., in)``
        :param features: inputs of the states' network ``(contexts, features)``
        :param embedded: inputs of the times' network ``(n_steps, features)``
        :param steps: coefficients
        :param draws: noise of the first steps
        :param clip: bounds of the state where a step clips it
        :return: all points, the sample as the last one
        """
        kernels = load_kernels()
        assert kernels is not None
        network, states, times = [network.members()[0][0] for network in self._networks]
        state_bias, time_bias = [_pad(parameters["bias"]) for parameters in self._biases]
        # names keep what is not contiguous alive during the call
        x, features, embedded = x.contiguous(), features.contiguous(), embedded.contiguous()
        draws = None if draws is None else draws.contiguous()
        points = x.new_empty((len(steps) + 1, *x.shape))
        kernels.encode_and_run_chain(
            states,
            state_bias.data_ptr(),
            features.data_ptr(),
            len(features),
            times,
            time_bias.data_ptr(),
            embedded.data_ptr(),
            network,
            steps.data_ptr(),
            len(steps),
            None if draws is None else draws.data_ptr(),
            0 if draws is None else len(draws),
            *clip,
            x.data_ptr(),
            points.data_ptr(),
            x.numel() // x.shape[-1],
            th.get_num_threads(),
        )
        return points


def _refuse_second_derivative() -> None:
    if th.is_grad_enabled():
        raise RuntimeError(
            "The compiled kernels have no second derivative; for create_graph=True run the forward pass within "
            "sb3_diffusion.kernels.switched_off()."
        )


class _Evaluation(th.autograd.Function):
    """A network as one node: :meth:`Network.evaluate`."""

    @staticmethod
    def forward(ctx: Any, network: Network, x: th.Tensor, context: th.Tensor, *parameters: th.Tensor) -> th.Tensor:
        x = x.contiguous()
        ctx.network = network
        ctx.record = network.new_record(x, len(x)) if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(x, context, *parameters)
        return network._evaluate(x, context, record=ctx.record)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        x, context, *_ = ctx.saved_tensors  # autograd checks that they and the parameters are those of the forward pass
        kernels, threads, rows = load_kernels(), th.get_num_threads(), len(x)
        assert kernels is not None
        network, record, ctx.record = ctx.network, ctx.record, None
        if record is None:  # an earlier pass has consumed it (retain_graph=True)
            record = network.new_record(x, rows)
            network._evaluate(x, context, record=record)
        _, needs_x, needs_context, *needs = ctx.needs_input_grad
        gradient, members = gradient.contiguous(), network.members()
        x_gradient = x.new_empty((len(members), *x.shape))
        sums = x.new_zeros((len(members), threads, network.n_gradients)) if any(needs) else None
        for m, (member, _) in enumerate(members):
            kernels.pull_back(
                member,
                x.data_ptr(),
                record.data_ptr() + 4 * m * record.numel() // len(members),
                gradient.data_ptr() + 4 * m * rows * network.output_dim,
                x_gradient.data_ptr() + 4 * m * x.numel(),
                None if sums is None else sums.data_ptr() + 4 * m * threads * network.n_gradients,
                network.n_gradients,
                rows,
                threads,
            )
        context_gradient = None
        if needs_context:
            contexts, width = context.shape[-2:]
            context_gradient = record[..., 1, 0, :, :width]
            if contexts != rows:
                context_gradient = context_gradient.unflatten(-2, (contexts, -1)).sum(-2)
        return (
            None,
            x_gradient.sum(0) if needs_x else None,
            context_gradient,
            *([None] * len(needs) if sums is None else network.split_gradients(sums, needs)),
        )


class _Chain(th.autograd.Function):
    """A whole reverse chain as one node: :meth:`Network.run_chain`."""

    @staticmethod
    def forward(
        ctx: Any,
        network: Network,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        *parameters: th.Tensor,
    ) -> th.Tensor:
        ctx.network, ctx.clip = network, clip
        ctx.kept = network.new_chain_record(x, len(steps)) if any(ctx.needs_input_grad) else None
        points = network._run_chain(steps, draws, clip, x, context, times, ctx.kept)
        ctx.save_for_backward(points, steps, draws, context, times, *parameters)
        return points

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        # autograd checks that they and the parameters are those of the forward pass
        points, steps, draws, context, times, *_ = ctx.saved_tensors
        kernels, threads = load_kernels(), th.get_num_threads()
        assert kernels is not None
        network, kept, ctx.kept = ctx.network, ctx.kept, None
        if kept is None:  # an earlier pass has consumed it (retain_graph=True)
            kept = network.new_chain_record(points[0], len(steps))
            network._run_chain(steps, draws, ctx.clip, points[0], context, times, kept)
        predictions, record = kept
        _, _, _, _, needs_x, needs_context, needs_times, *needs = ctx.needs_input_grad
        gradients = gradient.clone(memory_format=th.contiguous_format)
        n_steps, rows, _ = predictions.shape
        contexts, width = context.shape
        encoded = points.new_zeros((rows, network.first_width))
        sums = points.new_zeros((threads, network.n_gradients + n_steps * network.first_width))
        ((member, _),) = network.members()
        kernels.pull_back_chain(
            member,
            steps.data_ptr(),
            n_steps,
            *ctx.clip,
            *(tensor.data_ptr() for tensor in (points, gradients, predictions, record, encoded, sums)),
            sums.shape[1],
            rows,
            threads,
        )
        return (
            *(None, None, None, None),
            gradients[0] if needs_x else None,
            encoded[:, :width].unflatten(0, (contexts, -1)).sum(1) if needs_context else None,
            sums[0, network.n_gradients :].view(n_steps, -1)[:, :width] if needs_times else None,
            *network.split_gradients(sums, needs),
        )
