"""Which tree to draft: the usual one, or the fastest that was measured on this machine.

>>> usual_tree("model", "cpu", temperature=0.0)
'chain:3'
"""

from typing import TYPE_CHECKING, Any

from jspec.tuning.usual import usual_tree

if TYPE_CHECKING:
    from jspec.tuning.automatic import find_tree, remembered_tree, tune

__all__ = ["find_tree", "remembered_tree", "tune", "usual_tree"]


def __getattr__(name: str) -> Any:
    """Imports what measures when it is first used: the usual trees need no jax."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jspec.tuning import automatic

    return getattr(automatic, name)
