"""Weights on disk and the names they go by: safetensors, PyTorch, GGUF, NumPy. Knows tensors, not networks."""
