"""Help for tests, examples and benchmarks: a Hub on loopback, reference models, texts; not in the wheel."""
