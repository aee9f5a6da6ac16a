"""What a comparison takes of time, memory and disk."""
