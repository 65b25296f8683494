"""The machine: the rules of ``rules_*.py`` on one driver.

What an operation touched is compared at once, the whole tree now and then and
at the end.
"""

from __future__ import annotations

from collections.abc import Callable

from .drivers import Driver
from .planted import PlantedMachine
from .rules_attributes import AttributeRules
from .rules_files import FileRules
from .rules_names import NameRules
from .rules_time import TimeRules

Rules = tuple[type[PlantedMachine], ...]
ALL: Rules = (NameRules, AttributeRules, FileRules, TimeRules)


def machine_for(new_driver: Callable[[], Driver], rules: Rules = ALL) -> type[PlantedMachine]:
    """Return the machine for a driver; ``new_driver`` is called once per example."""
    return type("FilesystemMachine", rules, {"new_driver": staticmethod(new_driver)})
