"""Compressed files of examples, about as short as the bound: lossless, or the codes alone."""
