"""Checks of arguments that functions and commands share: each raises one line that names the
argument, its value, and what would do."""

from collections.abc import Sequence


def check_counts(**counts: int) -> None:
    """Raises `ValueError` for a count that is less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")


def check_seed(seed: int) -> None:
    """Raises `ValueError` for a seed that makes no key."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: must lie in 0..{2**32 - 1}")


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raises `ValueError` where there is none, or one that cannot be sampled at."""
    from jspec.core.sampling import LEAST_TEMPERATURE, SamplingParams

    if not temperatures:
        raise ValueError("temperatures is empty: give at least one, such as 0")
    for temperature in temperatures:
        SamplingParams.create(1, temperature=temperature)
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature={temperature}: less than {LEAST_TEMPERATURE:g} is greedy: give 0"
            )


def check_distinct(**given: Sequence[object]) -> None:
    """Raises `ValueError` for an argument that names something twice."""
    for name, values in given.items():
        if len(set(values)) < len(values):
            twice = " ".join(map(str, values))
            raise ValueError(f"{name}={twice} names one twice: give each once")
