"""Images and the order in which they are seen. Touches files and threads; imports no jax but to hand over."""
