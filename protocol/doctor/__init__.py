"""What `dtrap doctor` looks at: the installation, the device, weights on this machine, and a backbone's features."""
