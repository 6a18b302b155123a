"""Parameter-efficient tuning: a few parameters that are added to a network and trained in its stead."""
