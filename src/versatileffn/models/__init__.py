"""Transformers models whose FFN is reused; importing a family registers its Auto classes."""
