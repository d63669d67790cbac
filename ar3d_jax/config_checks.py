"""What config sections are checked with: what fails is an error naming the field."""

from ar3d_jax.errors import UserError


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raises UserError where `condition` does not hold: field, value and rule."""
    if not condition:
        raise UserError(f"config field {field} is {value!r}; expected {rule}")


def choice(field: str, value: object, *choices: object) -> None:
    """Raises UserError where `value` is none of `choices`."""
    require(value in choices, field, value, f"one of {', '.join(map(str, choices))}")


def ascending(field: str, value: tuple[int, ...]) -> None:
    """Raises UserError where the lengths are not in order, or there are none."""
    ordered = bool(value) and tuple(sorted(value)) == value
    require(ordered, field, value, "ascending lengths")
