"""Networks: encoders, decoders and backbones. They return parameters, never distributions."""
