"""Which layout a folder has, told by the keys of its tensors."""

from collections.abc import Iterable

from jspec.formats.fields import Fields

HEADS = ("eagle", "eagle3", "speculators")
# What only their keys begin with.
EAGLE3 = ("midlayer.", "d2t", "t2d", "hidden_norm.", "layers.0.hidden_norm.")
EAGLE = ("fc.",)


def layout_of(config: Fields, names: Iterable[str]) -> str | None:
    """One of `HEADS`; None for anything else, such as a whole model."""
    names = tuple(names)

    def some(beginnings: tuple[str, ...]) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if "speculators_model_type" in config:
        return "speculators"
    if some(EAGLE3):
        return "eagle3"
    # A layer and no last norm is a head that lost its first matrix.
    alone = some(("layers.0.self_attn.",)) and "norm.weight" not in names
    return "eagle" if some(EAGLE) or alone else None
