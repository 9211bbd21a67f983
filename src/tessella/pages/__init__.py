"""HTML pages about runs and results; each stands alone in one file."""
