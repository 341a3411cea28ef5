"""Download data sets: their sources, downloads with checksums, archives, and instructions for downloads by hand."""
