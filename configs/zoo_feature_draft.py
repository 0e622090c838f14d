"""FSPAD's ablation on the zoo's target: `jspec study feature-draft` without a config."""

from jspec.studies.feature_draft.recipe import FeatureDraftStudy


def config() -> FeatureDraftStudy:
    return FeatureDraftStudy(name="zoo_feature_draft")
