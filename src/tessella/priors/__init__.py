"""Priors p(z) over continuous latents and p(codes) over discrete ones."""
