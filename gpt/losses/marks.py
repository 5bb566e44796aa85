"""Values with a meaning of their own in targets and segment ids. Imports nothing, so that data code can use them."""

IGNORE = -100  # a target that counts neither in the sum nor in the count of a loss
PADDING = -1  # the segment id of positions that hold nothing
