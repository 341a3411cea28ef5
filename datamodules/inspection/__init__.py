"""Look at data sets under a folder: what is there, what is wrong with it, and a contact sheet."""
