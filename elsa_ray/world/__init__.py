"""The simulated field, numbers only: plans, devices, and the player that says when each step happens."""
