"""The zoo's target, first half: short blocks at a constant rate."""

import dataclasses
import runpy
from pathlib import Path

from jspec.distill.recipe import Recipe


def config() -> Recipe:
    long = runpy.run_path(str(Path(__file__).with_name("zoo_target.py")))["config"]()
    return dataclasses.replace(
        long,
        name="zoo_target_short",
        initial="",
        length=256,
        batch=8,
        steps=700,
        cooldown=0.0,
    )
