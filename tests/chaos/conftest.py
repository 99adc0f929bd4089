"""The data folders of the end-to-end tests, for servers that will be killed."""

from tests.end_to_end.conftest import fresh_data_dir, prepared

__all__ = ["fresh_data_dir", "prepared"]
