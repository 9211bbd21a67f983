"""Quality of what a model decodes: sharpness of pictures and signals, and likeness of sounds."""
