"""A teacher: the checkpoints of one training, in a directory or on the Hugging Face hub."""
