"""What the two settings on parity share."""
