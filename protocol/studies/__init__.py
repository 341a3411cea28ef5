"""Studies: many runs from one small YAML file."""
