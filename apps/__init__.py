"""Mini-apps with published or closed-form answers. Each folder's README says how to run it."""
