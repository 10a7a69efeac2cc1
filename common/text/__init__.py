"""Text: corpora, tokenizers, and fixed blocks of tokens as batches; what the settings on language share."""
