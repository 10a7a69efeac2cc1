"""How a student is taught: losses, schedules, and the trainer that follows them."""
