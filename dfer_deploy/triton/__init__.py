"""Triton servers: how they are installed, started, watched and measured."""
