"""Basic services without PyTorch: errors, progress, validation of records, files, and the registry."""
