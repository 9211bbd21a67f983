"""Flows: invertible maps with known log-determinants, and dequantisation of discrete values."""
