"""How a student is trained: losses, schedules and the trainer."""
