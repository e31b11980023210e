"""Which policies there are: each class registers itself, those of other packages by an entry point.

A package adds one with an entry point in the group ``sgl_dynts.policies`` that names its class, whatever
the entry point itself is called.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from sgl_dynts.policies.base import ModelFacts, Policy

GROUP = "sgl_dynts.policies"
NEEDED = ("name", "color", "keeps")
UNUSABLE = (
    *(ImportError, SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError),
    *(RuntimeError, OSError),
)
"""What another package's code may raise while it is imported, or registering its class."""

SomePolicy = TypeVar("SomePolicy", bound=type[Policy])

_known: dict[str, type[Policy]] = {}


def register(policy: SomePolicy) -> SomePolicy:
    """Add a policy class under its name; a class decorator.

    Raises:
        ValueError: another class has that name, or the class does not say who it is.
    """
    lacking = [field for field in NEEDED if not isinstance(getattr(policy, field, None), str)]
    if lacking:
        raise ValueError(f"policy {policy.__qualname__} has no {', '.join(lacking)}: give it as a text")
    other = _known.setdefault(policy.name, policy)
    if other is not policy:
        raise ValueError(
            f"policy {policy.__module__}.{policy.__qualname__} is called {policy.name!r}, as "
            f"{other.__module__}.{other.__qualname__} is already: choose another name"
        )
    return policy


def policies() -> Mapping[str, type[Policy]]:
    """Return every policy class by name, ours first.

    Raises:
        ValueError: another package's entry point cannot be used; names the package.
    """
    complaints = _load_other_packages()
    if complaints:
        raise ValueError("; ".join(complaints))
    return _known


def policy_names() -> tuple[str, ...]:
    """Return the names that a server or a request may choose, as far as they can be loaded."""
    _load_other_packages()
    return tuple(_known)


def needing(what: str) -> tuple[str, ...]:
    """Return the names of the policies with a need: ``predictor``, ``queries`` or ``all_queries``."""
    return tuple(name for name in policy_names() if getattr(_known[name], f"needs_{what}"))


def build_policies(facts: ModelFacts) -> dict[str, Policy]:
    """Return every policy, made for one served model, by name; errors as in :func:`policies`."""
    return {name: policy.build(facts) for name, policy in policies().items()}


def as_markdown() -> str:
    """Return the list of policies as a table."""
    rows = [
        f"| `{one.name}` | {one.keeps} | {one.paper} | {one.differs} |" for one in policies().values()
    ]
    head = "| policy | keeps, besides question, answers and local window | of its paper | differs |"
    return "\n".join([head, "|---|---|---|---|", *rows])


@cache
def _load_other_packages() -> tuple[str, ...]:
    """Load what other packages offer, once; what is wrong with those that cannot be used."""
    found = (_complaint(entry) for entry in entry_points(group=GROUP))
    return tuple(complaint for complaint in found if complaint is not None)


def _complaint(entry: EntryPoint) -> str | None:
    try:
        policy = entry.load()
        if not (isinstance(policy, type) and issubclass(policy, Policy)):
            raise TypeError(f"{entry.value} is no class of sgl_dynts.policies.Policy")
        register(policy)
    except UNUSABLE as error:
        package = "an unnamed package" if entry.dist is None else entry.dist.name
        return f"the policy {entry.name!r} of the package {package} cannot be used: {error}"
    return None
