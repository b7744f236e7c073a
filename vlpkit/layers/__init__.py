"""Blocks and embeddings that every part is made of."""
