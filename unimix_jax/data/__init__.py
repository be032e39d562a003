"""Images and the order in which training sees them. Touches files and threads; imports no jax."""
