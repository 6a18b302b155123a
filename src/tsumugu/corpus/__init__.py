"""From raw text to what a model reads: documents, cleaning, prepared shards, packing, a loader with a number for a state."""
