"""A model as a folder for others: with its code, its tokenizer, and what is known of it."""
