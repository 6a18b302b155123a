"""Writing text token by token: sampling, beams, streams."""
