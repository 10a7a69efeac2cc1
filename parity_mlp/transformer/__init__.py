"""GPT-2 on parity: its variants, its logits at the last position, and its training."""
