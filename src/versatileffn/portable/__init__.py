"""One file of Python that holds all that a saved model needs, made from this package's sources."""
