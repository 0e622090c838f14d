"""Many candidates on the zoo's pair: `jspec study multi-candidate` without a config."""

from jspec.studies.multi_candidate.recipe import MultiCandidateStudy


def config() -> MultiCandidateStudy:
    return MultiCandidateStudy(name="zoo_multi_candidate")
