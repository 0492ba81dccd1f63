"""Small things that every layer shares: atomic writes, optional imports, logging and progress."""
