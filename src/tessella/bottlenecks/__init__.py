"""Bottlenecks: what may pass from the encoder to the decoder."""
