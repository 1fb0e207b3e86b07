"""Task: what a fitted method is asked to do. classify: choose among classes."""
