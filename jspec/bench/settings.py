"""Defaults of the commands and the API: the zoo's models, and how much is measured."""

TARGET = "zoo:target"
DRAFT = "zoo:distilled"
DRAFTS = ("zoo:distilled", "zoo:fspad", "zoo:eagle")
# The tree that `jspec.tuning` finds, which is taken where none is named.
AUTO = "auto"
SEED = 0
TEMPERATURES = (0.0, 1.0)
PROMPT_LENGTH = 128
TOKENS = 256

# `jspec demo`: a chain and a tree of the draft, a chain of the head, and prompt lookup.
CHAIN, TREE = "chain:3", "comb:2x1"
HEAD, HEAD_TREE = "zoo:fspad", "chain:6"
LOOKUP = "chain:7"
DEMO_PROMPTS, DEMO_REPETITIONS = 2, 3
DEMO_SECONDS = 30  # after which no further repetition begins

# `jspec bench`: the trees that it compares.
TREES = ("chain:3", "chain:5", "comb:2x1", "comb:3x2", "4x2x1")
LOOKUPS = ("chain:7", "fork:2x5")
BENCH_PROMPTS, BENCH_REPETITIONS = 4, 5
