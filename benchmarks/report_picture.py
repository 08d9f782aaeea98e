"""Makes docs/images/report.png: the top of a page of `tokenreduce compare` in a headless Chromium.

    tokenreduce compare --model fashion_vit --methods ward,tome,evit,random --limit 200 --no-speed --out report
    python benchmarks/report_picture.py report/report.html

Needs Chromium and chromedriver on the path (and the extra `dev`).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

OUT = Path(__file__).parents[1] / "docs/images/report.png"
SIZE, WIDTH = (1200, 2200), 800  # of the window, and of the picture, in pixels


def main(page: Path) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.absolute().as_uri())
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    finally:
        driver.quit()
    picture.resize((WIDTH, picture.height * WIDTH // picture.width)).quantize(256, Image.Quantize.MAXCOVERAGE).save(
        OUT, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
