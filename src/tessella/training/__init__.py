"""Training: models, then priors over their frozen latents; the run folder, checkpoints, several processes."""
