"""Which launches must compile, as data."""

from dataclasses import dataclass
from typing import NamedTuple

from jspec.core.prompts import PREFILL_CHUNK
from jspec.parallel.sharding import read_sizes
from jspec.plan.hardware import slice_of
from jspec.plan.shapes import SHAPES
from jspec.studies.common.recipe import Study

# The smallest slices that hold a target and its draft, and larger ones, up to 256 chips.
_EIGHT = (
    "v5e:2x2/tensor=4", "v5e:16x16/data=32,tensor=8", "v6e:2x2/tensor=4", "v6e:2x4/tensor=8",
    "v5p:1x1x1/tensor=1", "v5p:4x8x8/data=32,tensor=8",
)  # fmt: skip
_LARGE = (
    "v5e:4x4/fsdp=2,tensor=8", "v5e:16x16/data=16,fsdp=2,tensor=8", "v6e:2x4/tensor=8",
    "v5p:2x2x1/tensor=4", "v5p:4x8x8/data=32,tensor=8",
)  # fmt: skip
PAIRS = {
    "llama3.1-8b": (("llama3.2-1b", "eagle3"), _EIGHT),
    "llama2-13b": (("llama-68m", "fspad"), _EIGHT),
    "qwen3-8b": (("qwen3-0.6b", "eagle3"), _EIGHT),
    "llama3.1-70b": (("llama3.2-1b", "eagle3"), _LARGE),
}


class Launch(NamedTuple):
    """Target, draft, slice and mesh, all as people write them."""

    target: str
    draft: str
    hardware: str
    mesh: str

    @property
    def name(self) -> str:
        """What it is called."""
        return "/".join(self)


ALL = tuple(
    f"{target}/{draft}/{place}"
    for target, (drafts, places) in PAIRS.items()
    for draft in drafts
    for place in places
)


@dataclass(frozen=True, kw_only=True)
class CompileGateStudy(Study):
    """Whether every program of a launch compiles for TPU slices, fits, and does what it should.

    Attributes:
      launches: `target/draft/slice/mesh`; drafts are known shapes, or heads of the target.
      batch, prompt_length, max_new_tokens: texts for each copy of the weights, and their lengths.
      length, rows: of a training step, tokens of a row, and rows for each part that `data` and
        `fsdp` cut a batch into.
    """

    name: str = "compile_gate"
    temperatures: tuple[float, ...] = (1.0,)
    launches: tuple[str, ...] = ALL
    batch: int = 1
    prompt_length: int = 1024
    max_new_tokens: int = 1024
    length: int = 1024
    rows: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("batch", "prompt_length", "max_new_tokens", "length", "rows")
        self._check_distinct("launches")
        if self.prompt_length % PREFILL_CHUNK:
            raise ValueError(
                f"prompt_length={self.prompt_length}: prompts are padded to a multiple of "
                f"{PREFILL_CHUNK}; give one"
            )
        for one in self.launches:
            parts = one.split("/")
            if len(parts) != 4 or parts[0] not in SHAPES or slice_of(parts[2]) is None:
                raise ValueError(
                    f"launches={one!r}: write target/draft/slice/mesh, as {ALL[0]} is, of "
                    f"{', '.join(SHAPES)}"
                )
            read_sizes(parts[3])

    def read_launches(self) -> list[Launch]:
        """All of them."""
        return [Launch(*one.split("/")) for one in self.launches]
