"""What the settings with Transformers on sequences of tokens share: arguments, training runs and commands."""
