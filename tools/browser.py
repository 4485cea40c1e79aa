"""The browser that tests the built site: find one on this machine, or install Chromium where the network allows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def find() -> str | None:
    """The program, or None: a Chromium on PATH, Chrome of macOS, or what `install` brought."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if MACOS.exists():
        return str(MACOS)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> str | None:
    """Find a browser, else try to install one; its program, or None."""
    if found := find():
        return found
    # The libraries that Chromium needs come from the system's packages, which only root can install.
    root = sys.platform == "linux" and os.geteuid() == 0
    commands = [[sys.executable, "-m", "playwright", "install", *(["--with-deps"] if root else []), "chromium"]]
    if root and shutil.which("apt-get"):
        commands.append(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"])
    for command in commands:
        try:
            subprocess.run(command, timeout=600)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found := find():
            return found
    return None


if __name__ == "__main__":
    browser = install()
    print(f"the site is tested in {browser}" if browser else "no browser, and none could be installed")
