"""The passes of fxprune, found through the entry point group `fxprune.passes`."""

from __future__ import annotations
