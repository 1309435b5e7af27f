"""Every test is checked for what it leaves by workerlib's own plugin: see `workerlib_no_leaks` in pyproject.toml."""

pytest_plugins = ["pytester"]
