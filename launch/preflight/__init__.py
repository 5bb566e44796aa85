"""All nodes of a job check each other before training: who answers, who can talk to whom, and how fast."""
