"""Extends tessella by a quantizer, a likelihood, a data source and a task."""
