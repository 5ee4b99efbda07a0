"""Trained models: evaluate, predict."""
