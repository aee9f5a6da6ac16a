"""What may be wrong with a file or a text, in words for a message."""

from __future__ import annotations

from cl_zoo.errors import first_line


def unread(error: OSError, otherwise: str = "check the data folder") -> str:
    """Why a file cannot be read and what to do about it, to follow its name in a sentence.

    Args:
        error: what the system said.
        otherwise: what to do where it is not a matter of rights.
    """
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or first_line(error)
    return f"{reason}; {'check who may read it' if isinstance(error, PermissionError) else otherwise}"


def halved(text: str) -> str | None:
    """Half of a character that a text holds, as JSON may write it: no tokenizer takes it; `None` in a sound text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ascii(text[error.start])
    return None
