"""What every op shares: the document rules and the choice of an implementation."""
