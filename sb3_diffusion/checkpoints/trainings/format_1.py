"""The dialect of the first format of checkpoints."""

from typing import Any

from sb3_diffusion.checkpoints.tagged_json import write_float


def from_format_1(node: Any) -> Any:
    """
    :param node: JSON of a state as the first format had it, with kinds under the key ``"@"``
    :return: The same in today's dialect
    """
    if isinstance(node, list):
        return [from_format_1(item) for item in node]
    if not isinstance(node, dict):
        return write_float(node) if type(node) is float else node
    parts = {key: from_format_1(item) for key, item in node.items() if key != "@"}
    kind = node.get("@")
    if kind is None:
        return parts
    if kind == "object":
        return {":state": {"of": parts["type"], "attributes": parts["attributes"]}}
    if kind == "seen":
        return {":seen": True}
    if kind in ("array", "space", "simulation", "workers"):
        return {f":{kind}": parts}
    ((name, content),) = parts.items()
    if name == "numbers":
        content = {":numbers": content}
    tags = {"number": "element", "dict": "items", "named tuple": "named_tuple", "torch generator": "torch_generator"}
    return content if kind == "list" else {f":{tags.get(kind, kind)}": content}
