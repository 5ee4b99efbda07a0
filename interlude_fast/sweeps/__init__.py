"""Many runs: grids, seeds, comparisons, and their tables."""
