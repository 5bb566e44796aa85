"""All nodes of a job check each other before training: which nodes answer, which can communicate, and how fast."""
