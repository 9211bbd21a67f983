"""Evaluation: the one ruler, and what it shows of a model's health."""
