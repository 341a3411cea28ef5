"""Measures of alignment between images and texts, and of visual learning."""
