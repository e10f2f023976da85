"""The passes of fxprune, found through the entry point group `fxprune.passes`.

A new pass or score is a file here and a row in `table`.

- `adopt`: products of masks that a model came with become masked parameters.
- `channels`: which channels are dead, whose cut changes nothing.
- `check`: that scores from elsewhere are what ranking relies on.
- `couple`: which channels a rule prunes together, in layers.
- `cut`: from a ranking to masks.
- `cut_channels`: dead channels cut out: fewer weights, the same function.
- `fold_branches`: constant branches become constants.
- `fold_masks`: masks folded or dropped; keys in the order that `remove` leaves.
- `given`: masks that the caller gives, or of ones.
- `magnitude`, `norm`, `random`: scores of entries and of channels.
- `mask`: products with masks put into the graphs.
- `method`: a user's own subclass of BasePruningMethod.
- `rank`: which units go, in one parameter or over all.
- `select`: the parameters that a rule takes.
- `table`: the passes by name.
- `unit_scores`: scores of units of coupled channels.
"""
