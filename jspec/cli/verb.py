"""What all verbs share."""

from dataclasses import dataclass

# Exit codes.
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(kw_only=True)
class Verb:
    """The options of every verb, and the method that `main` calls."""

    json: bool = False
    """Print one JSON object on stdout and nothing else there."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Does the work and returns the exit code; raises ValueError or OSError for bad input."""
        raise NotImplementedError
