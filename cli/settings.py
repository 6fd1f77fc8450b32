"""The environment as settings, or a sentence about what is wrong with it."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_settings import SettingsError

from shared.errors import ConfigError
from shared.settings import Settings


def read_settings() -> Settings:
    """Settings from `BFF_*`. Raises ConfigError with the variable's name and without its value."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"BFF_{'_'.join(map(str, detail['loc'][:1])).upper()}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigError("\n".join(lines)) from None
    except SettingsError as error:
        raise ConfigError(f"a BFF_ variable cannot be read: {error}") from None
