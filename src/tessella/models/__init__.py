"""Models: named compositions of the parts."""
