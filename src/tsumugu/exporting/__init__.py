"""Whole models in other tongues: ONNX, torch.export, JAX, TensorFlow."""
