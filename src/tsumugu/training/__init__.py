"""The one training loop, and what stands around it: recipes, optimisers, checkpoints, events, ranks."""
