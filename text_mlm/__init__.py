"""BERT on natural language, masked prediction (setting 5 of the paper)."""
