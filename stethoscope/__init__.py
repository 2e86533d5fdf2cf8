"""Stethoscope: use sparse autoencoders to find where a skill lives, inject the raw task vector there, and judge it."""

__version__ = "0.1.0"
