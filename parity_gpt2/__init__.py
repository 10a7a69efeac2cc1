"""GPT-2 on sparse and hierarchical parity, trained by Adam (setting 2 of the paper)."""
