"""How well a task is solved: metrics with their uncertainty, baselines, comparisons and reports."""
