"""Speed as ratios inside one run: variants interleaved in rotating order, one thread, medians of per-round ratios."""
