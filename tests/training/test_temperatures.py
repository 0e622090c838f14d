"""Temperatures of sequences: a number, a set, a range."""

import numpy as np
import pytest

from jspec.training.recipe import read_temperatures, split_temperatures

COUNT = 6000


def test_each_number_of_a_set_is_drawn_as_often():
    drawn = read_temperatures("t", "0.7, 0.8,0.9").draw(3, COUNT)
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_allclose(values, [0.7, 0.8, 0.9], rtol=1e-6)
    # 6,000 draws: a standard error of 37.
    assert np.all(abs(counts - COUNT / 3) < 180)


def test_a_range_is_drawn_evenly_from_end_to_end():
    drawn = np.sort(read_temperatures("t", "0.3..1.5").draw(3, COUNT))
    even = 0.3 + 1.2 * (np.arange(COUNT) + 0.5) / COUNT
    # Kolmogorov's distance is below 1.63 / sqrt(n) for 99 samples of 100.
    assert np.abs(drawn - even).max() < 1.2 * 1.63 / COUNT**0.5


def test_what_is_drawn_depends_on_the_seed_alone():
    found = read_temperatures("t", "0.3..1.5")
    np.testing.assert_array_equal(found.draw(1, 9), found.draw(1, 9))
    assert np.any(found.draw(1, 9) != found.draw(2, 9))


def test_what_is_served_is_measured_one_by_one():
    assert list(split_temperatures("0,1,0.50")) == ["0", "1", "0.5"]
    assert list(split_temperatures("0.3..1.5")) == ["0.3..1.5"]


@pytest.mark.parametrize("text", ["", "hot", "-1", "1..1", "2..1", "1,,2", "1..2..3", "inf"])
def test_what_is_no_temperature_is_refused(text):
    with pytest.raises(ValueError, match=r"t='.*': write a number from 0 on"):
        read_temperatures("t", text)
