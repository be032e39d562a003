"""Launchers: Slurm, Kubernetes, sweeps."""
