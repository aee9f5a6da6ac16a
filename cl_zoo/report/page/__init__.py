"""One HTML page of finished runs that needs no other file and no network."""
