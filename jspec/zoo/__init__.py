"""The trained models that ship with the package, and what they were trained on."""
