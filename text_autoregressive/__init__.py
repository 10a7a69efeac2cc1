"""GPT-NeoX and GPT-2 on natural language, next-token prediction: the causal twin of text_mlm."""
