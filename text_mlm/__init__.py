"""BERT on Wikipedia and Books, masked prediction (setting 5 of the paper)."""
