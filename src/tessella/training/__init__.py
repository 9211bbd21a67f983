"""Training of models and of priors over their latents: run folders, checkpoints and distributed training."""
