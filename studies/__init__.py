"""`python -m studies`: what makes an adapter good on bases that it was not trained on; fills docs/transfer.md."""
