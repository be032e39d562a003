"""Launchers: Cloud Batch, TPU, Slurm, Kubernetes, sweeps."""
