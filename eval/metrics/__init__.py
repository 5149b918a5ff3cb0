"""From row scores to metrics with intervals, averages, and the comparison of two evaluations."""
