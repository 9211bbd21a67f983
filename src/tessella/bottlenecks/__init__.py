"""Bottlenecks: q(z | x), from the encoder's features to latents."""
