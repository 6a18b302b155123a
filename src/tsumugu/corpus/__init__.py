"""From raw text to what a model reads: documents, cleaning, prepared shards, packing, a seekable loader."""
