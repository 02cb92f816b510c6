"""Help for tests and demonstrations; nothing in the rest of the package imports it."""
