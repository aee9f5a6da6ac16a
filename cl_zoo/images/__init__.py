"""Pictures: read ahead in threads, looked at without decoding, and made RGB."""
