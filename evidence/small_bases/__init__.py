"""How the small base Video LLMs are trained: the one inside the package, and the further ones of the evidence.

``models`` builds them, ``families`` says what differs between families while they are trained, ``training`` teaches
them the silent world, ``making`` makes a base from clips to a measured folder, ``smollm2`` makes the one around a
pre-trained language model.
"""
