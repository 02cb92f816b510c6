"""What only the study needs: corpora, models trained from nothing, tasks with exact checkers."""
