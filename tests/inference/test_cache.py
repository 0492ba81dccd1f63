"""The cache keeps to its bytes, lets go of what was not used for longest, and keeps count in all threads."""

import random
import threading

import pytest

from pave.inference.cache import _ENTRY_BYTES, ByteCache


def room_for(count, size):
    return ByteCache(count * (size + _ENTRY_BYTES))


def test_what_was_not_used_for_longest_goes_first():
    cache = room_for(3, 1000)
    for key in "abc":
        cache.put(key, key.upper(), 1000)
    assert cache.get("a") == (True, "A")
    cache.put("d", "D", 1000)
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.get("b") == (False, None) and (cache.hits, cache.misses) == (1, 1)
    cache.put("e", "E", 2000)
    assert "e" in cache and cache.num_bytes <= cache.max_bytes


def test_a_value_may_be_nothing_be_replaced_and_be_dropped():
    cache = room_for(2, 1000)
    cache.put("none", None, 0)
    assert cache.get("none") == (True, None)
    cache.put("a", 1, 1000)
    cache.put("a", 2, 500)
    assert cache.get("a") == (True, 2) and cache.num_bytes == 500 + 2 * _ENTRY_BYTES
    cache.drop("a")
    cache.drop("a")
    assert len(cache) == 1 and cache.num_bytes == _ENTRY_BYTES


def test_what_is_too_large_is_not_kept_and_drives_nothing_out():
    cache = room_for(1, 1000)
    cache.put("a", 1, 1000)
    cache.put("b", 2, 1001)
    assert "a" in cache and "b" not in cache
    nothing = ByteCache(0)
    nothing.put("a", None, 0)
    assert len(nothing) == 0
    with pytest.raises(ValueError, match="cache_bytes must not be negative, got -5; 0 keeps nothing"):
        ByteCache(-5)


def test_threads_do_not_lose_count():
    cache = room_for(20, 100)

    def work(seed):
        rng = random.Random(seed)
        for _ in range(3000):
            key = rng.randrange(40)
            cache.put(key, key, rng.randrange(200)) if rng.random() < 0.6 else cache.drop(key)
            there, value = cache.get(key)
            assert value == (key if there else None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.num_bytes <= cache.max_bytes
    for key in range(40):
        cache.drop(key)
    assert cache.num_bytes == 0 and len(cache) == 0
