"""Readers of the published formats: one loader for the world and for the real thing."""
