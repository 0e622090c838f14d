"""The study of temperatures on the zoo's pair: `jspec study temperature` without a config."""

from jspec.studies.temperature.recipe import TemperatureStudy


def config() -> TemperatureStudy:
    return TemperatureStudy(name="zoo_temperature")
