"""What is used where nothing is said: the drafts and the trees that pay for the zoo's target."""

TARGET = "zoo:target"
DRAFTS = ("zoo:distilled", "zoo:fspad", "zoo:eagle")

# The demo's; the draft and the look-up are also the defaults of `jspec generate`.
DRAFT = "zoo:distilled"
CHAIN = "chain:3"
TREE = "comb:2x1"
# Of `jspec generate` and `jspec verify`: the fastest, found by measuring.
USUAL_TREE = "auto"
# Of a draft that stops early.
DEEP = "chain:8"
LOOKUP = "chain:7"
FORK = "fork:2x4"
GROWN = "grow:4x4x12"
# The demo's alone.
HEAD = "zoo:fspad"
HEAD_TREE = "chain:6"

# The trees that `jspec bench` compares.
TREES = ("chain:3", "chain:5", "comb:2x1", "comb:3x2", "4x2x1")
LOOKUPS = ("chain:7", "fork:2x5")

TEMPERATURES = (0.0, 1.0)
PROMPT_LENGTH = 128
TOKENS = 256
DEMO_PROMPTS, DEMO_REPETITIONS = 2, 3
DEMO_SECONDS = 30  # after which no further repetition is begun
BENCH_PROMPTS, BENCH_REPETITIONS = 4, 5
SEED = 0
