"""Causal language models on natural language: the twin of text_autoregressive that predicts the next token."""
