"""Diffusion: a Markov chain from noise to z_0, its variational bound, and samplers.

`schedule.py` defines the noise level at each time, `chain.py` p(z_0) and its bound, `samplers.py` the sampling methods,
`discretized_likelihood.py` p(x | z_0), and `discrete_denoiser.py` the posterior of discrete values given noisy ones.
"""
