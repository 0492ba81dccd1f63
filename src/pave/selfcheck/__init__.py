"""What this machine can do, and whether patches work on it: facts, and a short run with checks on every device."""

from pave.selfcheck.checks import Check, Outcome, check_device, make_items
from pave.selfcheck.machine import describe_machine, devices, usable_device
from pave.selfcheck.recipe_run import check_recipe

__all__ = ["Check", "Outcome", "check_device", "check_recipe", "describe_machine", "devices", "make_items", "usable_device"]
