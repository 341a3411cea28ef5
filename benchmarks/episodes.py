"""X."""
PARTS = ()
