"""What may come of an attempt: a result, or one line that says what is wrong."""

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

# What the package raises for what its user gave it; anything else is a fault of its own.
REFUSALS = (ValueError, TypeError, FileNotFoundError, FileExistsError, FloatingPointError)


class Outcome(NamedTuple):
    """A result, the line of a refusal, or a fault."""

    result: Any = None
    refusal: str = ""
    fault: str = ""


def attempt(function: Callable[[], Any]) -> Outcome:
    """Calls a function, and says what came of it."""
    try:
        return Outcome(result=function())
    except REFUSALS as error:
        said = str(error)
        if not said or "\n" in said or len(said) > 1000:
            return Outcome(fault=f"{type(error).__name__} is not one line: {said[:300]!r}")
        if not _ours(error):
            return Outcome(fault=f"of a library, as it is: {type(error).__name__}: {said[:300]}")
        return Outcome(refusal=said)
    # Whatever it is, it should have been a refusal.
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        return Outcome(fault=f"{type(error).__name__} at {where}: {str(error)[:300]}")


def _ours(error: BaseException) -> bool:
    """Whether the package itself raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "/jspec/" in last.filename
