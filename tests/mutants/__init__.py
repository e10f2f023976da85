"""Faults planted in the compiler, each of which a compile's own checker has to catch.

`python -m tests.mutants` (`make mutants`) plants each in turn and prints which were caught, and
counts false alarms on Programs compiled without a fault.
"""
