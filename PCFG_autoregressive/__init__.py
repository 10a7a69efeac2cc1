"""GPT-2 on probabilistic context-free grammars, next-token prediction (setting 4 of the paper)."""
