"""From settings to a folder: what a run is told, checks before it begins, and what it leaves; one file a verb."""
