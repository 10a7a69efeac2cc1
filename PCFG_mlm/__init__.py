"""BERT on probabilistic context-free grammars, masked prediction (setting 3 of the paper)."""
