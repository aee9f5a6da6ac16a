"""One run: learn every task of a stream, answer after each."""
