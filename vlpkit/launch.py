"""What the `hydra` block of a configuration may build: Hydra's own classes, its plugins, handlers of logging, and what the user trusts.
Hydra would take any callable but those on a list of known dangers, and a preset may come from somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlpkit.check import is_trusted
from vlpkit.errors import ConfigError
from vlpkit.signatures import locate

_HOMES = ("hydra", "hydra_plugins", "logging")
_CALLED = ("_target_", "class", "()")  # keys whose value is called: by Hydra, and by the configuration of logging


def check_launch(node: Mapping[str, Any]) -> None:
    """Raises ConfigError when a key beneath `hydra` names anything else to be called."""
    for place, address in _calls(node, "hydra"):
        if not isinstance(address, str) or not _at_home(address):
            raise ConfigError(f"{place}: {address!r} may not be named here (accepted: names under {', '.join(_HOMES)}, vlpkit and the modules of plugins=[...]).")
        found = locate(address)
        if found is not None and not _at_home(found.address):
            raise ConfigError(f"{place}: {address!r} leads to {found.address!r}, which is outside of {', '.join(_HOMES)} and vlpkit.")
        if found is None and not address.startswith("hydra_plugins."):  # a plugin may be absent, which Hydra says itself
            raise ConfigError(f"{place}: there is no {address!r}.")


def _at_home(address: str) -> bool:
    return any(address.startswith(f"{home}.") for home in _HOMES) or is_trusted(address)


def _calls(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if key in _CALLED:
            yield f"{place}.{key}", child
        else:
            yield from _calls(child, f"{place}.{key}")
