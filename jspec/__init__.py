"""Lossless speculative decoding and draft training in JAX."""

from jspec import verify, zoo
from jspec.config import ModelConfig, RopeScaling, Shape
from jspec.core.cache import Block, Cache
from jspec.core.candidates import Candidates, Draws, Rule, Verdict
from jspec.core.prompts import Prompts, prompts
from jspec.core.sampling import Sampling, sampling
from jspec.core.tree import Growth, Tree
from jspec.decode import Generation, State, autoregress, generate, speculate
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import Confidence, Entropy, Margin, Running, Stop
from jspec.formats.decision import Decision, load_decision, save_decision
from jspec.formats.heads import HeadCheckpoint, load_head, save_head
from jspec.formats.huggingface import Checkpoint, load, save
from jspec.models.heads import HeadParams
from jspec.models.layers import attend_layer
from jspec.models.own import from_linen, from_nnx
from jspec.models.protocol import LinenModel, Model, Output
from jspec.models.transformer import observed, transformer
from jspec.parallel import sharding
from jspec.parallel.launch import join
from jspec.parallel.sharding import make_mesh
from jspec.serving import generate_many, stream, stream_plain, stream_text, to_html

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
