"""Reports on runs and studies, read without torch."""
