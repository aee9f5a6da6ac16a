"""What engine and plugin promise each other."""
