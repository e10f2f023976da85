"""The tests of fxprune."""
