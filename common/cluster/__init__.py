"""A sweep: `plan` reads the plan that scripts/sweep.sh writes, `launcher` runs it here, `slurm` submits it as jobs."""
