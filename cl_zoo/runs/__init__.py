"""From names to a finished run, and many of them."""
