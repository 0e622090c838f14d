"""Lossless speculative decoding and draft training in JAX."""

from jspec import verify, zoo
from jspec.api import Speculator, TextOutput
from jspec.config import ModelConfig, RopeScaling, Shape
from jspec.core.cache import Block, Cache
from jspec.core.candidates import Candidates, Rule, Verification
from jspec.core.prompts import PaddedPrompts, pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.decode import DecodeState, GenerationOutput, autoregress, generate, speculate
from jspec.draft.draft import Draft, load_draft
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.draft.stopping import Confidence, Entropy, Margin, NetworkStop, RunningAcceptance, Stop
from jspec.formats.decision import Decision, load_decision, save_decision
from jspec.formats.heads import HeadCheckpoint, load_head, save_head
from jspec.formats.huggingface import Checkpoint, load, save
from jspec.models.heads import HeadParams
from jspec.models.layers import attend_layer
from jspec.models.own import from_linen, from_nnx
from jspec.models.protocol import Model, Output
from jspec.models.transformer import TransformerModel, transformer, with_hidden_states
from jspec.parallel import sharding
from jspec.parallel.launch import join
from jspec.parallel.sharding import make_mesh
from jspec.serving import generate_many, stream, stream_plain, stream_text, to_html
from jspec.training.pretraining import pretrain
from jspec.training.run import distill

__all__ = [
    "Block",
    "Cache",
    "Candidates",
    "Checkpoint",
    "Confidence",
    "Decision",
    "DecodeState",
    "Draft",
    "Drafter",
    "DynamicTree",
    "EarlyDrafter",
    "EarlyParams",
    "Entropy",
    "FeatureDrafter",
    "GenerationOutput",
    "HeadCheckpoint",
    "HeadParams",
    "LookupDrafter",
    "Margin",
    "Model",
    "ModelConfig",
    "NetworkStop",
    "Output",
    "PaddedPrompts",
    "RopeScaling",
    "Rule",
    "RunningAcceptance",
    "SamplingParams",
    "Shape",
    "SmallModelDrafter",
    "Speculator",
    "Stop",
    "TextOutput",
    "TransformerModel",
    "Tree",
    "Verification",
    "attend_layer",
    "autoregress",
    "distill",
    "from_linen",
    "from_nnx",
    "generate",
    "generate_many",
    "join",
    "load",
    "load_decision",
    "load_draft",
    "load_head",
    "make_mesh",
    "pad_prompts",
    "pretrain",
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
    "with_hidden_states",
    "zoo",
]
