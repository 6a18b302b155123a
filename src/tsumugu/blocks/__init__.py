"""The parts that networks are wired from. A block knows nothing of families, files or tasks."""
