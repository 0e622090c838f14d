"""Random input of every kind: each gives the right answer, or one line that says what is wrong.

    python tests/fuzzing requests --count 10000
    python tests/fuzzing files --count 2000
    python tests/fuzzing rows --count 1000

Prints how many were tried of each kind, and each fault with the `--seed` and `--count 1` that show
it again. Exits with 1 where there is one.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import random_files  # noqa: E402
import random_requests  # noqa: E402
import random_rows  # noqa: E402
import tiny_zoo  # noqa: E402

from jspec.formats import folder as model_folders  # noqa: E402

KINDS = {
    "requests": random_requests.attempts,
    "files": random_files.attempts,
    "rows": random_rows.attempts,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzzing", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has the next")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    tried: dict[str, int] = {}
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        model_folders.ZOO_MODELS = tiny_zoo.write(Path(folder) / "zoo")
        seeds = range(given.seed, given.seed + given.count)
        for seed, kind, fault in KINDS[given.kind](seeds, Path(folder)):
            tried[kind] = tried.get(kind, 0) + 1
            if fault:
                faults += 1
                print(f"--seed {seed}: {kind}: {fault}", flush=True)
    for kind, count in sorted(tried.items()):
        print(f"{count:6} {kind}")
    print(f"{sum(tried.values()):6} in all, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
