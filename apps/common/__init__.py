"""What the mini-apps share: blocks, the audit of messages, analytic volume, the report."""
