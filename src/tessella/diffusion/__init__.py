"""Diffusion: a chain from noise to z_0, its variational bound, and how it is drawn from.

Inside, `schedule.py` says how much noise there is when, `lattice.py` what whole numbers say of a noisy one,
`chain.py` is p(z_0) with its bound, `samplers.py` the ways through the chain, `observation.py` is p(x | z_0).
"""
