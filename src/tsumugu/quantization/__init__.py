"""Fewer bits for a model's weights: grids of numbers, rounding by what texts ask of a layer, GGUF out."""
