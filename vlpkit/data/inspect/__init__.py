"""Looks at finished shards: is everything there and whole, what do they hold, what is in them twice, and what does it look like.
Standard library, numpy and Pillow alone; torch is imported only where a tokenizer is asked for."""
