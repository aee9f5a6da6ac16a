"""A run taken out: adapters and checkpoints."""
