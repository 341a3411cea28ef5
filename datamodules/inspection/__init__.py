"""Look at the data sets under a folder: find them, check them, draw a contact sheet."""
