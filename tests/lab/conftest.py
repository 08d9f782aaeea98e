from timed import clock  # noqa: F401  a fixture of the tests of speed
