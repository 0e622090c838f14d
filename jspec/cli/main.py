"""The entry point: finds the verb, runs it, and turns bad input into one line and exit 2."""

import contextlib
import hashlib
import io
import os
import platform
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from tyro.conf import FlagCreatePairsOff

from jspec.cli.bench import Bench
from jspec.cli.decide import Decide
from jspec.cli.demo import Demo
from jspec.cli.generate import Generate
from jspec.cli.plan import Plan
from jspec.cli.study import Study
from jspec.cli.training import Distill, Train
from jspec.cli.transfer import Export, Import
from jspec.cli.tune import Tune
from jspec.cli.verb import BAD_INPUT, DONE, INTERRUPTED, Verb
from jspec.cli.verify import Verify
from jspec.parallel.memory import GIGABYTE, free_host_memory
from jspec.training.recipe import Distillation, Pretraining

# Each is called what its class is called.
VERBS = (
    Demo | Generate | Bench | Verify | Tune | Train | Distill | Decide | Plan | Study | Export
    | Import
)  # fmt: skip
# The signal that raises an exception again that was lost.
REPEATED = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
SHORTEST = 0.1  # seconds of a compilation that is worth keeping
DESCRIPTION = "Lossless speculative decoding: the same text, sooner."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code: 0 done, 1 a check failed, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SystemExit as end:
        return int(end.code or DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `head` does; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def entry() -> None:
    """The command `jspec`. Once interrupted it leaves at once: a compilation that still runs in
    another thread would die of the interpreter's own end."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.unraisablehook = _hear_again
    keep_compiled_programs()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(code)
    sys.exit(code)


def keep_compiled_programs() -> None:
    """Keeps what jax compiles below the user's cache folder, so that the same command starts sooner
    the next time; JAX_COMPILATION_CACHE_DIR names another place."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # A home may be shared by machines whose processors have other instructions.
    place = Path(cache) / "jspec" / "compiled" / _processor()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(place, os.W_OK):
        # What cannot be kept, on a full disk, is compiled the next time.
        warnings.filterwarnings("ignore", message="Error writing persistent compilation cache")
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)


def _processor() -> str:
    """A name for processors that run the same programs."""
    file, about = Path("/proc/cpuinfo"), [platform.machine(), platform.processor()]
    if file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features")
        about = sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def _hear_again(lost: Any) -> None:
    """Repeats an interrupt, or a notice to leave, that came while jax cleaned up, where exceptions
    are dropped."""
    for kind, number in REPEATED.items():
        if issubclass(lost.exc_type, kind):
            threading.Timer(0.01, signal.raise_signal, (number,)).start()
            return
    sys.__unraisablehook__(lost)


def _run(arguments: list[str]) -> int:
    verb = _read(arguments)
    try:
        return verb.run()
    except BrokenPipeError:
        raise
    except (ValueError, OSError, OverflowError, FloatingPointError) as error:
        if verb.debug:
            traceback.print_exc()
        _complain(str(error) or type(error).__name__)
        return BAD_INPUT
    except RuntimeError as error:
        if verb.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _complain(_too_little(error))
        return BAD_INPUT


def _too_little(error: RuntimeError) -> str:
    """What jax says about memory that it cannot get, and what is free."""
    free = free_host_memory()
    there = "" if free is None else f" ({free / GIGABYTE:.2f} GB are free on this host)"
    asked = " ".join(str(error).split()).removeprefix("RESOURCE_EXHAUSTED: ")
    return (
        f"{asked}{there}: ask for fewer tokens or a smaller batch, or shard the models over a mesh"
    )


def _read(arguments: list[str]) -> Verb:
    """The verb that the arguments ask for; on an error one line, and `SystemExit` with 2."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                VERBS,
                prog="jspec",
                description=DESCRIPTION,
                args=arguments,
                config=(FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code:
            _complain(_hint(arguments) or _unbox(box.getvalue()))
        raise


def _hint(arguments: list[str]) -> str:
    """What two usual mistakes are; empty for others."""
    verb, *rest = arguments or [""]
    kind = {"distill": Distillation, "train": Pretraining}.get(verb)
    for place, word in enumerate(rest):
        name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
        if kind is not None and word.startswith("--") and name in kind.__dataclass_fields__:
            value = value or next(iter(rest[place + 1 :]), "VALUE")
            return f"{word}: fields of the recipe are written without dashes: {name}={value}"
        if verb == "generate" and not word.startswith("-") and " " in word and not place:
            return f"{word!r}: a prompt is given by --prompt"
    return ""


def _complain(message: str) -> None:
    print("jspec: " + " ".join(message.split()), file=sys.stderr)


def _unbox(box: str) -> str:
    """The words of tyro's framed message, without the frame and what only repeats the help."""
    lines = (line.strip(" │") for line in box.splitlines())
    words = [line for line in lines if line.strip("-") and line[0] not in "╭╰─"]
    kept = []
    for number, line in enumerate(words):
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        kept.append(line)
        if number and words[number - 1].startswith("Perhaps you meant"):
            break
    return " ".join([*kept, "(jspec --help lists what there is)"])


if __name__ == "__main__":
    entry()
