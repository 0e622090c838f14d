"""EAGLE-3's heads as the speculators library has them, which vLLM serves without being told more.

The layer's configuration lies in `transformer_layer_config`, and what is EAGLE-3's beside it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jspec.formats import eagle3
from jspec.formats.embedding import unlike
from jspec.formats.fields import Fields, flag, number, refuse
from jspec.formats.tensors import Stored
from jspec.models.eagle3 import Eagle3
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params

MODULE, OF = eagle3.MODULE, eagle3.OF
EMBEDDING, spare = eagle3.EMBEDDING, eagle3.spare
KIND, LAYER, RESIDUAL = (
    "speculators_model_type",
    "transformer_layer_config",
    "norm_before_residual",
)
# The release whose fields these are.
VERSION = "0.3.0"
TOKENS = 3


class Served(NamedTuple):
    """What vLLM is to serve: the `verifier`, a target's folder or hub name, its `architectures` as
    its `config.json` has them, and how many `tokens` the head guesses a round."""

    verifier: str
    architectures: tuple[str, ...]
    tokens: int = TOKENS


def keys(head: Head, names: Iterable[str] = ()) -> dict[str, str]:
    """Keys in the file by paths in our tree."""
    return eagle3.keys_below(eagle3.LAYERS, head)


def read_head(
    config: Fields, stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> Eagle3:
    """`eagle3.read_head`."""
    if config.get(KIND) != "eagle3":
        raise ValueError(f"{KIND}={config.get(KIND)!r} is not read: 'eagle3' is")
    refuse(config, tie_word_embeddings=False, quantization_config=None)
    fields = config.get(LAYER)
    if not isinstance(fields, dict):
        raise ValueError(f"{LAYER}={fields!r} must be an object: the configuration of a Llama")
    if config.get(RESIDUAL) is None:
        raise ValueError(
            f"{RESIDUAL} is missing: vLLM would take true, and speculators false, so write the one "
            "that the head was trained with"
        )
    own = EMBEDDING in stored and bool(unlike(EMBEDDING, stored[EMBEDDING], target, params))
    return eagle3.read_traits(
        config,
        eagle3.read_layer(fields),
        layers=eagle3.read_layers(config, target.config.layers),
        own_embedding=own,
        draft_vocabulary=number(config, "draft_vocab_size"),
        norm_before_residual=flag(config, RESIDUAL),
    )


def write_head(
    head: Eagle3, rest: Mapping[str, Any], served: Served | None = None
) -> dict[str, Any]:
    """The `config.json` of a head; raises `ValueError` for one that this layout does not hold.

    Args:
      rest: fields that every configuration of a model has; served: who verifies, and how.
    """
    if served is None:
        raise ValueError(
            "served=None: the layout of speculators names the head's target, so give Served"
        )
    if served.tokens < 1:
        raise ValueError(f"speculative_tokens={served.tokens}: must be at least 1")
    alike = head.target_width == head.config.width
    return {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        KIND: "eagle3",
        "speculators_version": VERSION,
        **eagle3.write_traits(head),
        "target_hidden_size": None if alike else head.target_width,
        "embed_requires_grad": head.module.own_embedding,
        "tie_word_embeddings": False,
        LAYER: {**eagle3.write_layer(head), **rest},
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": served.tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "default_proposal_method": "greedy",
            "verifier": {
                "name_or_path": served.verifier,
                "architectures": list(served.architectures),
            },
        },
    }
