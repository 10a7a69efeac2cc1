"""Exact batch-1 SGD at the speed of block operations, and plain PyTorch for everything else; see `engine`."""
