"""A teacher: the checkpoints of one training run, in a directory or on the Hugging Face hub."""
