"""What a model is: its algorithm, parameters, hyperparameters and data, told by its own files."""
