"""`jspec import` and `jspec export`: a model or a head into a folder, checked to the last key."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from tyro.conf import Positional

from jspec import zoo
from jspec.cli.models import Dtype
from jspec.cli.verb import DONE, Verb, emit, say
from jspec.formats import heads
from jspec.formats.folder import naming, read_json
from jspec.formats.head_layout import SPECULATIVE_TOKENS, Serving
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Params
from jspec.training.loading import load_model, save_draft
from jspec.training.loop import RECIPE
from jspec.training.run import load_run_draft

MODEL_FORMAT = "hf"


@dataclass(kw_only=True)
class Transfer(Verb):
    """What the verbs share that write a folder."""

    dtype: Dtype = "bfloat16"  # Of the weights in the file; the zoo's are bfloat16.
    format: Literal["hf", "eagle", "eagle3", "speculators"] | None = None
    """The layout to write: hf, which is a whole model's, or one of a head's. If nothing is said, hf
    for a model, and for a head the one that it has: eagle, of EAGLE, HASS and FSPAD; of EAGLE-3
    eagle3, which SGLang serves, or speculators, which vLLM does."""
    target: str | None = None
    """Of a head: the model that it was made for, which it is checked against and whose embedding is
    written with it."""
    speculative_tokens: int | None = None
    """Of speculators: how many tokens vLLM is to draft per round; 3 if nothing is said."""

    def transfer(self, argument: str, source: str, folder: Path) -> int:
        """Reads what `argument` names, writes it, says so, and returns the exit code."""
        with naming(argument, source):
            is_head = heads.head_layout(source) is not None
        if not is_head:
            model = load_model(argument, source, self.dtype)
            _check_finite(argument, source, model.params)
            return self.write_model(source, model, folder)
        if self.target is None:
            raise ValueError(f"target: {source} is a head, so name the model that it was made for")
        target = load_model("target", self.target, self.dtype)
        with naming(argument, source):
            head = heads.load_head(source, target.model, target.params, dtype=self.dtype)
        _check_finite(argument, source, head.params)
        return self.write_head(source, head, target, folder)

    def write_model(self, source: str, model: Checkpoint, folder: Path) -> int:
        """Writes a whole model, with its tokenizer."""
        if self.format not in (None, MODEL_FORMAT):
            raise ValueError(
                f"format={self.format!r}: {source} is a whole model, no head, so {MODEL_FORMAT} is "
                "its format"
            )
        if self.target is not None:
            raise ValueError(f"target={self.target!r}: {source} is no head, so leave it out")
        self._check_served(MODEL_FORMAT)
        save_draft(folder, model, self.dtype)
        config, stop_token_ids = model.model.config, list(model.stop_token_ids)
        about = {"num_hidden_layers": config.num_hidden_layers, "stop_token_ids": stop_token_ids}
        return self._report(source, model.family, model.params, config, folder, **about)

    def write_head(
        self, source: str, head: HeadCheckpoint, target: Checkpoint, folder: Path
    ) -> int:
        """Writes a head beside the embedding of its target."""
        if self.format == MODEL_FORMAT:
            fitting = " or ".join(heads.formats_for(head.head))
            raise ValueError(f"format={self.format!r}: {source} is a head, so it may be {fitting}")
        layout = self.format or head.format
        self._check_served(layout)
        heads.save_head(
            folder,
            head.head,
            head.params,
            d2t=head.d2t,
            embedding=target.params["embedding"],
            dtype=self.dtype,
            format=layout,
            serving=self._serving(target),
        )
        about = {"kind": head.head.kind, "target": self.target}
        return self._report(source, layout, head.params, head.head.config, folder, **about)

    def _check_served(self, layout: str) -> None:
        if self.speculative_tokens is not None and layout != "speculators":
            raise ValueError(
                f"speculative_tokens={self.speculative_tokens}: format={layout!r} does not say it, "
                "so leave it out, or write speculators"
            )

    def _serving(self, target: Checkpoint) -> Serving:
        """What a server is told: the target by a name that it can find, and how far to draft."""
        given = self.target or str(target.folder)
        here = given.startswith(zoo.ZOO) or Path(given).expanduser().is_dir()
        name = str(target.folder.absolute()) if here else given
        architectures = read_json(target.folder / "config.json").get("architectures") or ()
        tokens = SPECULATIVE_TOKENS if self.speculative_tokens is None else self.speculative_tokens
        return Serving(name, tuple(architectures), tokens)

    def _report(
        self, source: str, family: str, params: Params, config: Any, folder: Path, **about: Any
    ) -> int:
        place = folder.expanduser().absolute()
        parameters = sum(x.size for x in jax.tree.leaves(params))
        written = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        if self.json:
            fields = "hidden_size", "vocab_size", "max_position_embeddings"
            emit(
                {
                    "source": source,
                    "folder": str(place),
                    "family": family,
                    "dtype": self.dtype,
                    "parameters": parameters,
                    "bytes": written,
                    **{name: getattr(config, name) for name in fields},
                    **about,
                }
            )
        else:
            say(
                f"{source}: {about.get('kind', family)} of {parameters:,} parameters in "
                f"{self.dtype}, {written / 1e6:.1f} MB, in {place}"
            )
        return DONE


@dataclass(kw_only=True)
class Import(Transfer):
    """Read a model or a head, refuse what is not understood, and keep it in a folder."""

    source: Positional[str]  # A local folder, or a hub name.
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""

    def run(self) -> int:
        """Writes the folder."""
        return self.transfer("source", self.source, self.folder)


@dataclass(kw_only=True)
class Export(Transfer):
    """Write a model as a Hugging Face folder, which transformers and vLLM read, or a head in a
    layout that its other readers know."""

    name: Positional[str]
    """target, wide, distilled, eagle or fspad of the zoo; a folder, or a hub name; or the folder
    of a distillation, such as runs/NAME, which may still be running."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    step: str = ""  # Of a distillation: newest (the default), best, or the number of a checkpoint.

    def run(self) -> int:
        """Writes the folder."""
        source = zoo.ZOO + self.name if self.name in zoo.NAMES else self.name
        run = Path(self.name).expanduser()
        if (run / RECIPE).is_file():
            return self._export_run(run, source)
        if self.step:
            raise ValueError(
                f"step={self.step!r}: {self.name} is not the folder of a distillation, which has a "
                f"{RECIPE}"
            )
        return self.transfer("name", source, self.folder)

    def _export_run(self, run: Path, source: str) -> int:
        """Writes the draft of a distillation."""
        recipe, draft = load_run_draft(run, self.step or "newest")
        if not isinstance(draft, HeadCheckpoint):
            return self.write_model(source, draft, self.folder)
        target_name = self.target or recipe.target
        target = load_model("target", target_name, self.dtype)
        with naming("target", target_name):
            heads.check_target(draft.head, target.model, target.params)
        return replace(self, target=target_name).write_head(source, draft, target, self.folder)


def _check_finite(argument: str, source: str, params: Params) -> None:
    """Raises `ValueError` that names a parameter which holds NaN or infinity."""
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.isfinite(x).all():
            name = ".".join(part.key for part in path)
            raise ValueError(
                f"{argument}={source!r}: {name} holds numbers that are not finite: download or "
                "save it again"
            )
