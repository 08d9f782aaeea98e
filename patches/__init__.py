"""Adapters: a folder for each library, in it one backbone family a file, imported only when the library already is."""
