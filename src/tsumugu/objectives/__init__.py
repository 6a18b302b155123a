"""What training minimises: how rows of tokens become a batch, and how far a model is off on it."""
