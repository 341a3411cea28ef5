"""The protocol: the loop over episodes or seeds, its run folder, its statistics and its saved adapters."""
