"""A call on its way over HTTP, for every door that sees the bytes (SDK clients, the gateway)."""
