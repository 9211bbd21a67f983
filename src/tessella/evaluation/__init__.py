"""Evaluation: bounds of a model, use of its latents, and fidelity of its samples."""
