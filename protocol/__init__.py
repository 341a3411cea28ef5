"""The loop over episodes, its results on disk, its statistics, and the commands."""
