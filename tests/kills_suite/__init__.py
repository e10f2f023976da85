"""Whether the quick tests see what the whole suite sees.

`python -m tests.kills_suite` (`make kills-suite`) puts one fault at a time into the compiler: those
of `tests.mutants`, and drawn ones of one line in ranking, recipes, files and channels. Of each it
runs the quick tests that execute the line, and where they pass, the thorough ones that do.
"""
