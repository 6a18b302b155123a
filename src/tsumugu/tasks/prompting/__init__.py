"""Tasks that a decoder solves from a prompt, without being trained for them."""
