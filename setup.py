"Author, license, classifiers and requirements come from `settings.ini`; the rest from `pyproject.toml`."
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(interpolation=None)
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
lines = lambda key: [o for o in cfg[key].splitlines() if o.strip()]

setup(author=cfg["author"], license=cfg["license"], keywords=cfg["keywords"].split(), classifiers=lines("classifiers"),
      install_requires=lines("requirements"), extras_require={o: lines(f"{o}_requirements") for o in ("onnx", "dev")})
