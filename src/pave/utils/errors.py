"""Errors about data that a program can tell apart."""

from __future__ import annotations


class CodedError(ValueError):
    """A ``ValueError`` with a stable code, so that nobody has to read its sentence to know what kind of defect it is.

    The codes are those of ``pave doctor``, explained in docs/doctor.md.
    """

    code = ""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
