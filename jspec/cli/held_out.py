"""What commands that continue held-out text share: their numbers checked, and the text itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jspec.bench.suite import Workload
    from jspec.formats.huggingface import Checkpoint


def check_counts(**counts: int) -> None:
    """Raises `ValueError` for one that is less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: must be at least 1")


def check_seed(seed: int) -> None:
    """Raises `ValueError` for one that makes no key."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: must lie in 0..{2**32 - 1}")


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Raises `ValueError` where there is none, or one that cannot be sampled at."""
    from jspec.core.sampling import sampling

    if not temperatures:
        raise ValueError("temperatures is empty: give at least one, such as 0")
    for temperature in temperatures:
        sampling(1, temperature=temperature)


def held_out_work(
    target: "Checkpoint",
    *,
    prompts: int,
    prompt_length: int,
    batch: int,
    tokens: int,
    seed: int,
    prose: bool = False,
) -> "Workload":
    """Held-out code to go on from, or prose."""
    from jspec.bench.suite import workload
    from jspec.zoo.prompts import held_out_prompts, out_of_domain_prompts

    cut = out_of_domain_prompts if prose else held_out_prompts
    return workload(
        cut(target.tokenizer, prompts, prompt_length),
        batch=batch,
        tokens=tokens,
        context=target.model.config.context,
        seed=seed,
    )
