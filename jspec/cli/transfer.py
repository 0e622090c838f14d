"""A model or a head on its way into a folder, and what it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jspec.cli.pair import Dtype, is_head, read_head, read_model, write_model
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, Verb
from jspec.zoo import PREFIX

if TYPE_CHECKING:
    from jspec.formats.heads import HeadCheckpoint
    from jspec.formats.huggingface import Checkpoint
    from jspec.formats.speculators import Served
    from jspec.models.protocol import Params

MODEL_FORMAT = "hf"


@dataclass(kw_only=True)
class Transfer(Verb):
    """What the verbs share that write a folder."""

    dtype: Dtype = "bfloat16"
    """Of the weights in the file; the zoo's are bfloat16."""
    format: Literal["hf", "eagle", "eagle3", "speculators"] | None = None
    """The layout to write: hf, which is a whole model's, or one of a head's. If nothing is said, hf
    for a model, and for a head the one that it has: eagle, of EAGLE, HASS and FSPAD; of EAGLE-3
    eagle3, which SGLang serves, or speculators, which vLLM does."""
    target: str | None = None
    """Of a head: the model that it was made for, which it is held against and whose embedding is
    written with it."""
    speculative_tokens: int | None = None
    """Of speculators: how many tokens vLLM is to let the head guess a round; 3 if nothing is said.
    """

    def transfer(self, argument: str, source: str, folder: Path) -> int:
        """Reads what `argument` names, writes it, says so, and returns the exit code."""
        if is_head(argument, source):
            if self.target is None:
                raise ValueError(
                    f"target: {source} is a head, so name the model that it was made for"
                )
            target = read_model("target", self.target, self.dtype)
            head = read_head(argument, source, target, self.dtype)
            _check_finite(argument, source, head.params)
            return self.write_head(source, head, target, folder)
        model = read_model(argument, source, self.dtype)
        _check_finite(argument, source, model.params)
        return self.write_model(source, model, folder)

    def write_model(self, source: str, model: "Checkpoint", folder: Path) -> int:
        """Writes a whole model."""
        if self.format not in (None, MODEL_FORMAT):
            raise ValueError(
                f"format={self.format!r}: {source} is a whole model, no head, so {MODEL_FORMAT} is "
                "its format"
            )
        if self.target is not None:
            raise ValueError(f"target={self.target!r}: {source} is no head, so leave it out")
        self._check_served(MODEL_FORMAT)
        write_model(folder, model, self.dtype)
        config = model.model.config
        about = {"layers": config.layers, "end_of_text": list(model.end_of_text)}
        return self._say(source, model.family, model, folder, config, about)

    def write_head(
        self, source: str, head: "HeadCheckpoint", target: "Checkpoint", folder: Path
    ) -> int:
        """Writes a head beside the embedding of its target."""
        from jspec.formats.heads import formats, save_head

        if self.format == MODEL_FORMAT:
            fitting = " or ".join(formats(head.head))
            raise ValueError(f"format={self.format!r}: {source} is a head, so it may be {fitting}")
        format = self.format or head.format
        self._check_served(format)
        save_head(
            folder,
            head.head,
            head.params,
            d2t=head.d2t,
            embedding=target.params["embedding"],
            dtype=self.dtype,
            format=format,
            served=self._served(target),
        )
        about = {"kind": head.head.kind, "target": self.target}
        return self._say(source, format, head, folder, head.head.config, about)

    def _check_served(self, format: str) -> None:
        if self.speculative_tokens is not None and format != "speculators":
            raise ValueError(
                f"speculative_tokens={self.speculative_tokens}: format={format!r} does not say it, "
                "so leave it out, or write speculators"
            )

    def _served(self, target: "Checkpoint") -> "Served":
        """What a server is told: the target by a name that it can find, and how far to guess."""
        from jspec.formats.folder import read_json
        from jspec.formats.speculators import TOKENS, Served

        named = Path(self.target).expanduser()
        here = self.target.startswith(PREFIX) or named.is_dir()
        name = str(target.folder.absolute()) if here else self.target
        architectures = read_json(target.folder / "config.json").get("architectures") or ()
        tokens = TOKENS if self.speculative_tokens is None else self.speculative_tokens
        return Served(name, tuple(architectures), tokens)

    def _say(
        self,
        source: str,
        family: str,
        read: "Checkpoint | HeadCheckpoint",
        folder: Path,
        config: Any,
        about: dict[str, Any],
    ) -> int:
        import jax

        place = folder.expanduser().absolute()
        record = {
            "source": source,
            "folder": str(place),
            "family": family,
            "dtype": self.dtype,
            "parameters": sum(x.size for x in jax.tree.leaves(read.params)),
            "bytes": sum(file.stat().st_size for file in place.glob("*.safetensors")),
            "width": config.width,
            "vocabulary": config.vocabulary,
            "context": config.context,
            **about,
        }
        if self.json:
            emit(record)
        else:
            kind = record.get("kind", family)
            console().print(
                f"{source}: {kind} of {record['parameters']:,} parameters in {self.dtype}, "
                f"{record['bytes'] / 1e6:.1f} MB, in {place}",
                soft_wrap=True,
            )
        return DONE


def _check_finite(argument: str, source: str, params: "Params") -> None:
    """Raises `ValueError` that names a parameter which holds what is no number."""
    import jax
    import jax.numpy as jnp

    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.isfinite(x).all():
            name = ".".join(part.key for part in path)
            raise ValueError(
                f"{argument}={source!r}: {name} holds numbers that are not finite: download or "
                "save it again"
            )
