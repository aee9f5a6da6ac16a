"""What decides training and is no method's."""
