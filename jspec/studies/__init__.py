"""The papers' experiments, on the zoo or on any pair."""
