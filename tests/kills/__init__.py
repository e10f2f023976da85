"""Writers that are killed at random moments: what is there afterwards is old or new, and whole."""
