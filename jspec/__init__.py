"""Lossless speculative decoding and draft training in JAX."""

from jspec import sharding, verify, zoo
from jspec.authorship import to_html
from jspec.cache import Block, Cache
from jspec.candidates import Candidates, Draws, Rule, Verdict
from jspec.config import ModelConfig, RopeScaling, Shape
from jspec.decode import autoregress, generate, speculate
from jspec.draft.early import EarlyDrafter, EarlyParams
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping.confidence import Confidence
from jspec.draft.stopping.entropy import Entropy
from jspec.draft.stopping.margin import Margin
from jspec.draft.stopping.protocol import Stop
from jspec.draft.stopping.running import Running
from jspec.formats.decision import Decision, load_decision, save_decision
from jspec.formats.heads import HeadCheckpoint, load_head, save_head
from jspec.formats.huggingface import Checkpoint, load, save
from jspec.growth import Growth
from jspec.launch import join
from jspec.models.attention import attend_layer
from jspec.models.heads import HeadParams
from jspec.models.own import from_linen, from_nnx
from jspec.models.protocol import LinenModel, Model, Output
from jspec.models.transformer import observed, transformer
from jspec.queue import generate_many
from jspec.ragged import Prompts, prompts
from jspec.sampling import Sampling, sampling
from jspec.sharding import make_mesh
from jspec.state import Generation, State
from jspec.stream import stream, stream_plain
from jspec.text import stream_text
from jspec.tree import Tree

__all__ = [
    "Block",
    "Cache",
    "Candidates",
    "Checkpoint",
    "Confidence",
    "Decision",
    "Drafter",
    "Draws",
    "EarlyDrafter",
    "EarlyParams",
    "Entropy",
    "FeatureDrafter",
    "Generation",
    "Growth",
    "HeadCheckpoint",
    "HeadParams",
    "LinenModel",
    "LookupDrafter",
    "Margin",
    "Model",
    "ModelConfig",
    "Output",
    "Prompts",
    "RopeScaling",
    "Rule",
    "Running",
    "Sampling",
    "Shape",
    "SmallModelDrafter",
    "State",
    "Stop",
    "Tree",
    "Verdict",
    "attend_layer",
    "autoregress",
    "from_linen",
    "from_nnx",
    "generate",
    "generate_many",
    "join",
    "load",
    "load_decision",
    "load_head",
    "make_mesh",
    "observed",
    "prompts",
    "sampling",
    "save",
    "save_decision",
    "save_head",
    "sharding",
    "speculate",
    "stream",
    "stream_plain",
    "stream_text",
    "to_html",
    "transformer",
    "verify",
    "zoo",
]
