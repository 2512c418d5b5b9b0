"""What all settings have in common: they do not change, name what is known, and hold numbers that mean something."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST, SMALLEST = 1e9, 1e-12  # beyond these, single precision overflows within a step or has nothing left


class Settings(BaseModel):
    """Settings, each of which is checked on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers from `SMALLEST` to `LARGEST`, and 0; to its own bound where a setting has one."""
        bounds = cls.model_fields[str(info.field_name)].metadata
        bounded = any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in bounds)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number:
                if abs(number) > LARGEST and not bounded:
                    raise ValueError(f"expected at most {LARGEST:g}")
                if abs(number) < SMALLEST:
                    raise ValueError(f"expected at least {SMALLEST:g}")
        return value
