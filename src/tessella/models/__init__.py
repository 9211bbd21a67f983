"""Models: compositions of the parts."""
