"""The complete signature of an algorithm whose constructor hands ``**kwargs`` on."""

import inspect
from collections.abc import Callable


def complete_signature(constructor: Callable[..., None], parent: type) -> inspect.Signature:
    """
    Signature of an algorithm whose constructor hands ``**kwargs`` on to its parent class.

    The order is Stable-Baselines3's: the method's own arguments stand between ``n_steps`` and the rest.

    :param constructor: ``__init__`` of the algorithm
    :param parent: The class that gets ``**kwargs``; its own signature is complete
    :return: Signature without ``self`` and without ``**kwargs``
    """
    own, base = (
        {name: p for name, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD}
        for function in (constructor, parent)
    )
    merged = {**base, **own}
    rank = {name: float(index) for index, name in enumerate(base)}
    order = sorted(merged, key=lambda name: rank.get(name, rank["n_steps"] + 0.5))
    # only what can be passed by position is shown so
    positional = [name for name, p in own.items() if p.kind == p.POSITIONAL_OR_KEYWORD and name != "self"]
    keywords = [name for name in order if name not in (*positional, "self")]
    by_name = [merged[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in keywords]
    return inspect.Signature([*(merged[name] for name in positional), *by_name])
