"""Priors: which latents are plausible."""
