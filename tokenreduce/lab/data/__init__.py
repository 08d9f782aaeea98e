"""Images with their truth: what ships with the library, and data sets in their official folders."""
