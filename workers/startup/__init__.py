"""Preparation before actors work: process environment, preloaded processes, the demo's tiny base model."""
