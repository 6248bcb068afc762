"""Claims about several devices."""
