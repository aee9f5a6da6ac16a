"""Pictures: read ahead in threads, and made RGB."""
