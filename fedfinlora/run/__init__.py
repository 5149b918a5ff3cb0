"""What a run leaves in its folder: the typed records of its files (`records`) and how they become JSON (`typed`)."""
