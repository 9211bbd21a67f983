"""Invertible maps with known log-determinants, and how discrete values become real ones for them."""
