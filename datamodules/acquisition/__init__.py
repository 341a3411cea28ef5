"""Download data sets: where each comes from, its checksums, archives, and what has to be fetched by hand."""
