"""Optional programs for x86-64 CPUs that compute the layers of networks faster than XLA does."""
