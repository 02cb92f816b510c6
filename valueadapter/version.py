"""The version of the library, in its one place; knows nothing else."""

__version__ = "0.1.0"
