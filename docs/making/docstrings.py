"""How the reference reads docstrings: `Example:` is what Google's style calls `Examples:`, code to be shown as such."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Lets griffe take the heading in the singular."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for each object that is read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
