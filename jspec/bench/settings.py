"""What is used where nothing is said: the draft and the trees that pay for the zoo's pair."""

TARGET = "zoo:target"
DRAFTS = ("zoo:wide", "zoo:deep")

# The demo's, and the defaults of `jspec generate`.
DRAFT = "zoo:wide"
CHAIN = "chain:3"
TREE = "4x2x1"
LOOKUP = "fork:2x7"

# The trees that `jspec bench` compares.
TREES = ("chain:3", "chain:5", "4x2x1", "4x2x2x1", "fork:4x3")
LOOKUPS = ("chain:3", "fork:2x7")

TEMPERATURES = (0.0, 1.0)
PROMPT_LENGTH = 128
TOKENS = 256
DEMO_PROMPTS, DEMO_REPETITIONS = 2, 3
DEMO_SECONDS = 30  # after which no further repetition is begun
BENCH_PROMPTS, BENCH_REPETITIONS = 4, 5
SEED = 0
