"""The structures that Python fills and ``mlp.cpp`` reads, and a check that both mean the same memory."""

import ctypes
from typing import Any, NamedTuple


class CompiledStep(NamedTuple):
    """An evaluation of a chain and the update behind it: ``Step`` in ``mlp.cpp``, a row of float32 numbers."""

    estimate_state: float = 0.0
    estimate_noise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    state: float = 0.0
    noise: float = 0.0
    previous: float = 0.0
    noise_std: float = 0.0
    needs_estimate: float = False
    clip_estimate: float = False
    clip_state: float = False
    is_midpoint: float = False


class LayerStruct(ctypes.Structure):
    """``Layer`` in ``mlp.cpp``."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class NetworkStruct(ctypes.Structure):
    """``Network`` in ``mlp.cpp``."""

    _fields_ = (("layers", ctypes.POINTER(LayerStruct)), ("n_layers", ctypes.c_int64), ("activation", ctypes.c_int64))


class StepStruct(ctypes.Structure):
    """``Step`` in ``mlp.cpp``: a row of the tensor that is made of :class:`CompiledStep`."""

    _fields_ = tuple((name, ctypes.c_float) for name in CompiledStep._fields)


class FieldStruct(ctypes.Structure):
    """``Field`` in ``mlp.cpp``, which describes the others; the field of an empty name is a structure as a whole."""

    _fields_ = (
        ("structure", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
    )


#: Name in ``mlp.cpp`` -> its mirror.
MIRRORS: dict[str, type[ctypes.Structure]] = {"Layer": LayerStruct, "Network": NetworkStruct, "Step": StepStruct}
#: Structure and field -> offset and size in bytes.
Places = dict[tuple[str, str], tuple[int, int]]


def mirrored_places(mirrors: dict[str, type[ctypes.Structure]]) -> Places:
    """
    Where Python has the fields.

    :param mirrors: See :data:`MIRRORS`
    """
    places: Places = {}
    for structure, mirror in mirrors.items():
        places[structure, ""] = (0, ctypes.sizeof(mirror))
        for name, *_ in mirror._fields_:
            field = getattr(mirror, name)
            places[structure, name] = (field.offset, field.size)
    return places


def compiled_places(library: Any) -> Places:
    """
    Where a library has the fields.

    :param library: It has the function ``structure_fields``, which returns them all, and how many there are
    """
    count = ctypes.c_int64()
    library.structure_fields.restype = ctypes.POINTER(FieldStruct)
    fields = library.structure_fields(ctypes.byref(count))
    return {(field.structure.decode(), field.name.decode()): (field.offset, field.size) for field in fields[: count.value]}


def difference(compiled: Places, mirrored: Places) -> str | None:
    """
    The first field that the two do not have in the same place.

    :param compiled: Result of :func:`compiled_places`
    :param mirrored: Result of :func:`mirrored_places`
    :return: A clause about it, None if there is none
    """
    for structure, name in [*mirrored, *compiled]:
        there, here = compiled.get((structure, name)), mirrored.get((structure, name))
        if there != here:
            field = f"{structure}.{name}" if name else f"structure {structure}"
            return f"{field} is {_in_words(there)} in the library and {_in_words(here)} in structures.py"
    return None


def _in_words(place: tuple[int, int] | None) -> str:
    return "nothing" if place is None else f"{place[1]} bytes at {place[0]}"
