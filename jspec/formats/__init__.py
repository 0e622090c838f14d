"""Files in and out: model folders, heads, tokenizers and stop networks."""
