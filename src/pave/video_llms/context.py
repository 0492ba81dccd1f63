"""How long a prompt a base can take."""

from __future__ import annotations

from typing import Any


def context_length(config: Any) -> int | None:
    """Positions that a base's language model was made for; None where its config says none.

    With stretched rotary positions (``factor`` and ``original_max_position_embeddings``, as YaRN is configured) it is their product
    where that is more.
    """
    text = config.get_text_config()
    known: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    return max(known, int(factor * original)) if known and factor and original else known


def over_limit(tokens: int, config: Any, max_length: int | None = None) -> str | None:
    """What is wrong with the length of a prompt, in words; None if it fits.

    Args:
        tokens: of the prompt, video tokens included.
        config: the base's.
        max_length: a further limit; None: only what the base can take.
    """
    limits = {"max_length": max_length, "the base's context": context_length(config)}
    over = [f"{name} is {limit}" for name, limit in limits.items() if limit is not None and tokens > limit]
    return f"the prompt has {tokens} tokens, {' and '.join(over)}" if over else None
