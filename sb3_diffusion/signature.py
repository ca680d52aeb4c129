"""The complete signature of a class whose constructor hands ``**kwargs`` on."""

import inspect
from collections.abc import Callable, Collection


def complete_signature(
    constructor: Callable[..., None], parent: type, behind: str, settled: Collection[str] = ()
) -> inspect.Signature:
    """
    Signature of a class whose constructor hands ``**kwargs`` on to its parent class.

    :param constructor: ``__init__`` of the class
    :param parent: The class that gets ``**kwargs``; its own signature is complete
    :param behind: Argument of the parent behind which the class's own ones stand
    :param settled: Arguments of the parent that the constructor gives itself
    :return: Signature without ``self`` and without ``**kwargs``
    """
    given = inspect.signature(constructor).parameters
    own = {name: p for name, p in given.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    base = {name: p for name, p in inspect.signature(parent).parameters.items() if p.kind != p.VAR_KEYWORD}
    base = {name: p for name, p in base.items() if name not in settled}
    merged = {**base, **own}
    rank = {name: float(index) for index, name in enumerate(base)}
    order = sorted(merged, key=lambda name: rank.get(name, rank[behind] + 0.5))
    # only what can be passed by position is shown so
    source = base if any(p.kind == p.VAR_POSITIONAL for p in given.values()) else own
    positional = [name for name, p in source.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    by_name = [merged[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in order if name not in positional]
    return inspect.Signature([*(merged[name] for name in positional), *by_name])
