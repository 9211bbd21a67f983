"""Tasks: everything that can be done with a trained model."""
