"""A sweep: its plan, and how its runs are launched on this machine or as Slurm jobs."""
