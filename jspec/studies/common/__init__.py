"""What all studies share: recipes, measuring, records and their statistics, reports, plots."""
