"""The families. One file each: the configuration, the wiring, and the two-way map of names. No file is read here."""
