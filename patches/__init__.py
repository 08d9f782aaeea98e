"""Adapters: one backbone family a file, named `LIBRARY_family.py` and imported only when LIBRARY already is."""
