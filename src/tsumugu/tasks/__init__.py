"""What users want solved, one file a task."""
