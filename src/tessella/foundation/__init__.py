"""What everything stands on, without PyTorch: errors, progress, validated records, files, the registry."""
