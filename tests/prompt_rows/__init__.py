"""Vision-language models, one row a family: `prompt_rows/FAMILY.py` beside `patches/vision_language/FAMILY.py`."""
