"""Several episodes of one method as one batch on one device."""
