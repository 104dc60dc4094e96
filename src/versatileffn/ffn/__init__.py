"""The paper: one feed-forward network, reused in width and in depth."""
