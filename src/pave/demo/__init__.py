"""``pave demo``: the whole story on the embedded playground, from rendering to a report."""

from pave.demo.story import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
