"""Crusades: a judge the contestant never meets, for a Bittensor subnet that races model training."""

__version__ = "0.1.0"
