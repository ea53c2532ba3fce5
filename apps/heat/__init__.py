"""Heat conduction in a square plate."""
