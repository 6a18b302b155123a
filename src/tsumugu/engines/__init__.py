"""What runs a model. `torch` is the reference: it loads, saves, trains and computes everything."""
