"""Value adapters in vLLM: what the engine loads by itself; imports vLLM where it runs there, and nowhere else."""
