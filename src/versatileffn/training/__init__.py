"""Training: a YAML file in, a run folder with the trained model, its log and its receipts out."""
