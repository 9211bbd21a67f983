"""Evaluation: rate, distortion and bound of a model, use of its latents, and quality of its samples."""
