"""`jspec import`: a model or a head into a folder, checked to the last key; and what it shares with
`jspec export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from jspec.cli.models import Dtype, load_model, naming
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, Verb
from jspec.zoo import ZOO

if TYPE_CHECKING:
    from jspec.formats.head_layout import Serving
    from jspec.formats.heads import HeadCheckpoint
    from jspec.formats.huggingface import Checkpoint
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
    """Of a head: the model that it was made for, which it is checked against and whose embedding is
    written with it."""
    speculative_tokens: int | None = None
    """Of speculators: how many tokens vLLM is to draft per round; 3 if nothing is said."""

    def transfer(self, argument: str, source: str, folder: Path) -> int:
        """Reads what `argument` names, writes it, says so, and returns the exit code."""
        from jspec.formats.heads import head_layout, load_head

        with naming(argument, source):
            is_head = head_layout(source) is not None
        if is_head:
            if self.target is None:
                raise ValueError(
                    f"target: {source} is a head, so name the model that it was made for"
                )
            target = load_model("target", self.target, self.dtype)
            with naming(argument, source):
                head = load_head(source, target.model, target.params, dtype=self.dtype)
            _check_finite(argument, source, head.params)
            return self.write_head(source, head, target, folder)
        model = load_model(argument, source, self.dtype)
        _check_finite(argument, source, model.params)
        return self.write_model(source, model, folder)

    def write_model(self, source: str, model: "Checkpoint", folder: Path) -> int:
        """Writes a whole model, with its tokenizer."""
        from jspec.formats.folder import TOKENIZER_FILES
        from jspec.formats.huggingface import save

        if self.format not in (None, MODEL_FORMAT):
            raise ValueError(
                f"format={self.format!r}: {source} is a whole model, no head, so {MODEL_FORMAT} is "
                "its format"
            )
        if self.target is not None:
            raise ValueError(f"target={self.target!r}: {source} is no head, so leave it out")
        self._check_served(MODEL_FORMAT)
        has_text = any((model.folder / name).is_file() for name in TOKENIZER_FILES)
        save(
            folder,
            model.model,
            model.params,
            tokenizer=model.folder if has_text else None,
            stop_token_ids=model.stop_token_ids,
            dtype=self.dtype,
            family=model.family,
        )
        config = model.model.config
        about = {
            "num_hidden_layers": config.num_hidden_layers,
            "stop_token_ids": list(model.stop_token_ids),
        }
        return self._say(source, model.family, model, folder, config, about)

    def write_head(
        self, source: str, head: "HeadCheckpoint", target: "Checkpoint", folder: Path
    ) -> int:
        """Writes a head beside the embedding of its target."""
        from jspec.formats.heads import formats_for, save_head

        if self.format == MODEL_FORMAT:
            fitting = " or ".join(formats_for(head.head))
            raise ValueError(f"format={self.format!r}: {source} is a head, so it may be {fitting}")
        layout = self.format or head.format
        self._check_served(layout)
        save_head(
            folder,
            head.head,
            head.params,
            d2t=head.d2t,
            embedding=target.params["embedding"],
            dtype=self.dtype,
            format=layout,
            serving=self._served(target),
        )
        about = {"kind": head.head.kind, "target": self.target}
        return self._say(source, layout, head, folder, head.head.config, about)

    def _check_served(self, layout: str) -> None:
        if self.speculative_tokens is not None and layout != "speculators":
            raise ValueError(
                f"speculative_tokens={self.speculative_tokens}: format={layout!r} does not say it, "
                "so leave it out, or write speculators"
            )

    def _served(self, target: "Checkpoint") -> "Serving":
        """What a server is told: the target by a name that it can find, and how far to draft."""
        from jspec.formats.folder import read_json
        from jspec.formats.head_layout import SPECULATIVE_TOKENS, Serving

        given = self.target or str(target.folder)
        here = given.startswith(ZOO) or Path(given).expanduser().is_dir()
        name = str(target.folder.absolute()) if here else given
        architectures = read_json(target.folder / "config.json").get("architectures") or ()
        tokens = SPECULATIVE_TOKENS if self.speculative_tokens is None else self.speculative_tokens
        return Serving(name, tuple(architectures), tokens)

    def _say(
        self,
        source: str,
        family: str,
        loaded: "Checkpoint | HeadCheckpoint",
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
            "parameters": sum(x.size for x in jax.tree.leaves(loaded.params)),
            "bytes": sum(file.stat().st_size for file in place.glob("*.safetensors")),
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
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


@dataclass(kw_only=True)
class Import(Transfer):
    """Read a model or a head, refuse what is not understood, and keep it in a folder."""

    source: Positional[str]
    """A local folder, or a hub name."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""

    def run(self) -> int:
        """Writes the folder."""
        return self.transfer("source", self.source, self.folder)


def _check_finite(argument: str, source: str, params: "Params") -> None:
    """Raises `ValueError` that names a parameter which holds NaN or infinity."""
    import jax
    import jax.numpy as jnp

    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.isfinite(x).all():
            name = ".".join(part.key for part in path)
            raise ValueError(
                f"{argument}={source!r}: {name} holds numbers that are not finite: download or "
                "save it again"
            )
