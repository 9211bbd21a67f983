"""Files of examples, as short as the model's bound: lossless, or the codes alone."""
