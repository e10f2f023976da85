"""Hostile input of every kind, in numbers: only errors of fxprune's may come out."""
