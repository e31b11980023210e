"""What one request asks of DynTS, and all that is known of it."""
