"""An OpenAI-compatible server for a base and its patches. Needs the extra ``serve``."""
