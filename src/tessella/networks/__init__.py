"""Networks: how the data is looked at and drawn. They return parameters, never distributions."""
