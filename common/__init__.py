"""What every setting shares: schedules, losses, checkpoints, runs, phases, probes and plotting."""
