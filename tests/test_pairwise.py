"""A pairwise grid has every pair that is possible, and no row that is not."""

from pairwise import combinations, pairs_of, pairwise

FACTORS = {"rule": "abcd", "tree": (1, 2, 3), "temperature": (0.0, 0.7, 1.0), "draft": "xy"}


def test_every_pair_of_values_meets_in_a_fraction_of_the_combinations():
    rows = combinations(**FACTORS)
    grid = pairwise(rows)
    assert set().union(*map(pairs_of, grid)) == set().union(*map(pairs_of, rows))
    # No grid has fewer rows than the two largest factors have pairs.
    assert 4 * 3 <= len(grid) < len(rows) / 4


def test_what_is_impossible_is_left_out_and_what_it_leaves_possible_is_not():
    rows = [row for row in combinations(**FACTORS) if row["rule"] != "a" or row["tree"] == 1]
    grid = pairwise(rows)
    assert all(row in rows for row in grid)
    assert {row["tree"] for row in grid if row["rule"] == "a"} == {1}
    assert {row["temperature"] for row in grid if row["rule"] == "a"} == {0.0, 0.7, 1.0}


def test_rows_that_are_asked_for_come_first_and_what_they_have_is_not_sought_again():
    rows = combinations(**FACTORS)
    grid = pairwise(rows, first=rows[-2:])
    assert grid[:2] == rows[-2:]
    assert set().union(*map(pairs_of, grid)) == set().union(*map(pairs_of, rows))
    assert pairwise(rows, first=rows) == rows


def test_a_grid_is_the_same_every_time():
    assert pairwise(combinations(**FACTORS)) == pairwise(combinations(**FACTORS))
