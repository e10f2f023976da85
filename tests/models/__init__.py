"""Models that the tests share, and their captures."""
